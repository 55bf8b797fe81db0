"""The question's attention, layer by layer, against the model's own."""

import torch
from helpers import make_model, memory_store, random_prompt

from ragkv import precompute
from ragkv.experiment.inspection import attention_by_layer


@torch.inference_mode()
def test_attention_is_the_models_own(family, rng):
    """Its eager attention weights from the question to the document, over what stands behind the prefix."""
    model, prompt, store = make_model(family), random_prompt(rng), memory_store()
    precompute(model, [prompt], store)
    found = attention_by_layer(model, prompt, store)
    model.set_attn_implementation("eager")
    weights = model(input_ids=torch.tensor([prompt.ids]), output_attentions=True).attentions
    span, behind = prompt.document_span, len(prompt.prefix)
    asked = torch.stack([layer[0, :, prompt.question_span.start :, behind:] for layer in weights])
    expected = (asked / asked.sum(-1, keepdim=True)).sum((1, 2))[:, : len(span)]
    assert found.shape == (model.config.num_hidden_layers, len(span))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
