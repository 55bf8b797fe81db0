"""The contexts that come with the package: one for each embedded model, small, and better than none."""

import pytest
import torch
from helpers import make_model

from ragkv import load_model
from ragkv.contexts import LearnedContext, find_context
from ragkv.contexts.find import FOLDER
from ragkv.contexts.held_out import HeldOut
from ragkv.contexts.learned import metadata_of
from ragkv.contexts.owner import owner
from ragkv.models.load import embedded_models
from ragkv.models.rotary import Rotary
from ragkv.prompt import encode
from ragkv.tiny.texts import make_text

SHIPPED = sorted(FOLDER.glob("*.safetensors"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_file_is_small_whole_and_says_how_it_was_made(path):
    context = LearnedContext.read(path)
    assert context.layers.dtype == torch.bfloat16
    assert path.stat().st_size < 2e6
    assert {"trained_on", "settings", "training"} <= metadata_of(path).keys()


@pytest.mark.parametrize("name", embedded_models())
def test_plain_reuse_of_an_embedded_model_is_nearer_to_full_prefill_behind_its_context(name):
    """On texts that were not trained on, in documents of several chunks."""
    model, tokenizer = load_model(name, device="cpu")
    context = find_context("learned", model)
    assert context == LearnedContext.read(FOLDER / f"{name}.safetensors")
    texts = [encode(tokenizer, make_text(number)) for number in range(10_000, 10_008)]
    sizes = {"chunk_tokens": (48, 96), "document_tokens": (200, 400), "batch_tokens": 400, "single_share": 0.0}
    watched = HeldOut(model, Rotary.of(model, 2048), tokenizer, texts, **sizes)
    assert watched.divergence(context.layers) < 0.9 * watched.divergence(context.layers[:, :, :, :0])


def test_a_model_without_a_context_is_told_so():
    model = make_model("llama")
    with pytest.raises(ValueError, match="no learned context comes with ragkv for the model in use: train one with"):
        find_context("learned", model)
    assert owner(model)
