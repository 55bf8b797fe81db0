"""Training a context: what its loss measures, that it falls, and that it goes on where it stopped."""

import re
from dataclasses import replace
from random import Random

import pytest
import torch
from helpers import byte_level_bpe, make_model, memory_store, random_ids, relative_error
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from ragkv import Prompt, fused_prefill, precompute
from ragkv.benchmarks.tiny import notes
from ragkv.contexts import command
from ragkv.contexts import loss as loss_module
from ragkv.contexts.exercises import Exercise, Exercises
from ragkv.contexts.held_out import HeldOut
from ragkv.contexts.learned import LearnedContext, metadata_of
from ragkv.contexts.loss import divergences
from ragkv.contexts.owner import owner
from ragkv.contexts.training import Settings, train
from ragkv.costs.shape import Shape
from ragkv.costs.training import QUESTION, Batch, training_memory, training_operations
from ragkv.models.fingerprint import fingerprint
from ragkv.models.rotary import Rotary
from ragkv.prompt import encode
from ragkv.selectors import get_selector
from ragkv.tiny.texts import make_text, write_texts

SMALL = {"chunk_tokens": (24, 32), "document_tokens": (60, 90), "batch_tokens": 200, "answer_tokens": 6}


def exercise(rng, prompts=2, chunks=3, questions=1):
    def rows(*shape):
        ids = random_ids(rng, int(torch.tensor(shape).prod()))
        return torch.tensor(ids).view(shape)

    return Exercise((1, *random_ids(rng, 3)), rows(prompts, chunks, 9), rows(prompts * questions, 8), 5)


def texts(count=6, length=200):
    return [random_ids(Random(i), length) for i in range(count)]


@pytest.mark.parametrize(("behind_prefix", "questions"), [(False, 1), (True, 1), (True, 2)])
def test_the_loss_is_the_divergence_of_plain_reuse_from_a_full_prefill(model, rng, behind_prefix, questions):
    """Compared with fused prefills of ever longer prompts, one for each token of question and answer."""
    some = exercise(rng, questions=questions)
    shape = (3, 2, 2, 4, 16)
    context = LearnedContext(torch.randn(shape, generator=torch.Generator().manual_seed(3)), owner(model))
    store, each = memory_store(), []
    documents = [chunks for chunks in some.chunks.tolist() for _ in range(questions)]
    for chunks, question in zip(documents, some.question.tolist(), strict=True):
        whole = Prompt(some.prefix, chunks, question)
        placed = (whole.behind_prefix() if behind_prefix else whole).behind(context)
        precompute(model, [placed], store)
        for end in range(1, len(question)):
            until = Prompt(some.prefix, chunks, question[:end], placed.contexts, context)
            expected = fused_prefill(model, until, None, get_selector("full_prefill")).logits.log_softmax(-1)
            found = fused_prefill(model, until, store, get_selector("full_reuse")).logits.log_softmax(-1)
            each.append((expected.exp() * (expected - found)).sum().item())
    expected = torch.tensor(each).view(len(documents), -1)
    answer, question = divergences(model, Rotary.of(model, 128), context.layers, some, behind_prefix=behind_prefix)
    assert answer.item() == pytest.approx(expected[:, some.answer - 1 :].mean().item(), rel=1e-4)
    assert question.item() == pytest.approx(expected[:, : some.answer - 1].mean().item(), rel=1e-4)


def test_a_single_chunk_behind_the_prefix_and_no_context_loses_nothing(model, rng):
    some = exercise(rng, chunks=1)
    nothing = torch.zeros(3, 2, 2, 0, 16)
    losses = divergences(model, Rotary.of(model, 64), nothing, some, behind_prefix=True)
    assert max(loss.item() for loss in losses) < 1e-6


def test_a_layer_that_is_computed_again_gives_the_same_gradients(model, rng):
    some = exercise(rng)
    gradients = []
    for recompute in (False, True):
        context = torch.randn(3, 2, 2, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
        losses = divergences(model, Rotary.of(model, 64), context, some, behind_prefix=True, recompute=recompute)
        sum(losses).backward()
        gradients.append(context.grad)
    assert relative_error(*gradients) < 1e-5


def test_gradients_reach_every_number_of_the_context(model, rng):
    context = torch.randn(3, 2, 2, 4, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    answer, _ = divergences(model, Rotary.of(model, 64), context, exercise(rng), behind_prefix=False)
    answer.backward()
    assert context.grad is not None
    # The last layer's queries decide nothing about a chunk's own keys and values: only layers before it matter.
    assert (context.grad[:-1] != 0).all()


def test_training_lowers_the_divergence_and_leaves_the_model_alone(tiny):
    """On texts that it was not trained on, in the embedded model's own language."""
    model, tokenizer = tiny
    before = fingerprint(model)
    documents, _ = notes(12, 24, seed=5, chains=12, hops=1)
    ids = [encode(tokenizer, document) for document in documents]
    settings = Settings(tokens=4, steps=25, seconds=1e9, learning_rate=5e-2, behind_prefix=1.0)
    sizes = SMALL | {"open_share": 0.0}
    trained = train(model, tokenizer, ids[:8], settings, **sizes)
    untrained = train(model, tokenizer, ids[:8], replace(settings, steps=0), **sizes)
    assert trained.model == owner(model)
    assert fingerprint(model) == before

    rotary = Rotary.of(model, 512)
    held_out = Exercises(tokenizer, ids[8:], seed=99, **sizes)
    drawn = [held_out.draw() for _ in range(6)]
    with torch.no_grad():
        losses = [
            sum(divergences(model, rotary, context.layers, some, behind_prefix=True)[0].item() for some in drawn)
            for context in (untrained, trained)
        ]
    assert losses[1] < 0.95 * losses[0]


def test_the_same_seed_gives_the_same_context_and_training_goes_on_where_it_stopped(tmp_path):
    model, tokenizer = make_model("qwen2", vocab_size=400), byte_level_bpe()
    settings = Settings(tokens=2, steps=6, seconds=1e9)
    whole = train(model, tokenizer, texts(), settings, **SMALL)
    assert train(model, tokenizer, texts(), settings, **SMALL) == whole

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(model, tokenizer, texts(), settings, checkpoint=checkpoint, save_seconds=0.0, on_step=stop, **SMALL)
    steps = []
    resumed = train(
        model, tokenizer, texts(), settings, checkpoint=checkpoint, on_step=lambda now: steps.append(now.step), **SMALL
    )
    assert resumed == whole
    assert steps == [4, 5, 6]

    with pytest.raises(ValueError, match="checkpoint of another model or of other settings"):
        train(model, tokenizer, texts(), Settings(tokens=3, steps=6), checkpoint=checkpoint, **SMALL)


def test_batches_of_a_step_count_as_one_larger_batch(tmp_path):
    """Two batches a step, at a learning rate of 0, have the mean of what single batches have."""
    model, tokenizer = make_model("llama", vocab_size=400), byte_level_bpe()
    settings = Settings(tokens=2, steps=1, seconds=1e9, learning_rate=0.0)
    single, double = [], []
    train(model, tokenizer, texts(), replace(settings, steps=2), on_step=single.append, **SMALL)
    train(model, tokenizer, texts(), replace(settings, batches=2), on_step=double.append, **SMALL)
    first = single[0].divergence
    second = (single[1].divergence - 0.98 * first) / 0.02
    assert double[0].divergence == pytest.approx((first + second) / 2, rel=1e-4)
    assert double[0].prompts == single[1].prompts


def test_the_context_that_is_best_on_held_out_texts_is_kept_and_training_ends(monkeypatch, tmp_path):
    model, tokenizer = make_model("llama", vocab_size=400), byte_level_bpe()
    seen, contexts = iter([3.0, 1.0, 2.0, 2.0, 1.5, 0.5]), []

    def divergence(self, context):
        contexts.append(context.detach().clone())
        return next(seen)

    monkeypatch.setattr(HeldOut, "divergence", divergence)
    settings = Settings(tokens=2, steps=100, seconds=1e9, check_every=2, patience=3)
    progress = []
    checkpoint = tmp_path / "c.safetensors"
    options = {"held_out": texts(2), "on_step": progress.append, "checkpoint": checkpoint} | SMALL
    best = train(model, tokenizer, texts(), settings, **options)
    assert len(progress) == 10  # five looks; the second was the best
    assert (progress[-1].best, progress[-1].waited, progress[-1].held_out) == (1.0, 3, 1.5)
    assert torch.equal(best.layers, contexts[1].to(torch.bfloat16))
    assert train(model, tokenizer, texts(), settings, **options) == best  # as the checkpoint says, it has ended
    assert len(contexts) == 5


def test_held_out_exercises_are_the_same_at_every_look(tiny):
    model, tokenizer = tiny
    documents, _ = notes(4, 24, seed=5, chains=4, hops=1)
    watched = HeldOut(model, Rotary.of(model, 512), tokenizer, [encode(tokenizer, text) for text in documents], **SMALL)
    context = torch.zeros(8, 2, 4, 1, 32)
    assert watched.divergence(context) == watched.divergence(context) > 0


def test_texts_shorter_than_the_context_are_refused():
    with pytest.raises(ValueError, match="no text has 300 tokens, the context's length"):
        train(make_model("llama", vocab_size=400), byte_level_bpe(), texts(), Settings(tokens=300), **SMALL)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("questions", [1, 4])
@pytest.mark.parametrize(("prompts", "chunks", "tokens"), [(1, 8, 64), (3, 2, 96), (2, 1, 200)])
def test_planned_operations_and_memory_are_near_what_is_counted(
    tiny, monkeypatch, prompts, chunks, tokens, questions, recompute
):
    """PyTorch's counter of operations, and the sizes of what autograd saves besides the weights."""
    model, _ = tiny
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    document = torch.randint(3, 2000, (prompts, chunks, tokens), generator=generator)
    asked = torch.randint(3, 2000, (prompts * questions, QUESTION), generator=generator)
    some = Exercise((1, 5, 9, 7), document, asked, 40)
    context = torch.randn(8, 2, 4, 16, 32, generator=generator).requires_grad_()
    shape, batch = Shape.of("tiny-llama"), Batch(prompts, chunks * tokens, tokens, front=4, questions=questions)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    def losses():
        return sum(divergences(model, Rotary.of(model, 1024), context, some, behind_prefix=True, recompute=recompute))

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = losses()
    kept = sum(storage.nbytes() for storage in saved.values())
    del loss
    planned = training_memory(shape, batch, size=4, recompute=recompute)
    planned -= 4 * (shape.weights + shape.hidden * shape.vocabulary)
    assert kept < planned  # which also counts what is not saved for going backwards
    assert recompute or planned < 1.6 * kept

    def attend(query, key, value, positions, scaling):  # the counter does not know masks of this kind
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for states in (key, value))
        return (query @ key.transpose(-1, -2) * scaling).softmax(-1) @ value

    monkeypatch.setattr(loss_module, "_attend", attend)
    with FlopCounterMode(display=False) as counter:
        losses().backward()
    assert training_operations(shape, batch, recompute=recompute) == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_a_dry_run_loads_nothing_and_an_8b_model_fits_one_gpu_with_checkpointing(monkeypatch):
    monkeypatch.setattr(command, "load_model", None)
    words = ["train", "Qwen/Qwen3-8B", "--texts", "no such folder", "--out", "x", "--dry-run"]
    said = CliRunner().invoke(command.context, words)
    assert said.exit_code == 0, said.output
    plain, recomputed = (float(found) for found in re.findall(r"about ([\d.e+]+) GB", said.output))
    assert recomputed < 80 < plain


def test_the_command_trains_on_a_folder_of_texts_and_says_in_the_file_how(tmp_path, tiny):
    write_texts(tmp_path / "texts", 21)
    out = tmp_path / "c.safetensors"
    words = ["train", "tiny-llama", "--texts", str(tmp_path / "texts"), "--out", str(out), "--device", "cpu"]
    words += ["--tokens", "3", "--minutes", "0.02", "--batches", "2", "--recompute", "--batch-tokens", "200"]
    words += ["--chunk-tokens", "24", "32", "--document-tokens", "60", "90"]
    done = CliRunner().invoke(command.context, words)
    assert done.exit_code == 0, done.output
    assert LearnedContext.load(out, tiny[0]).tokens == 3
    assert metadata_of(out)["trained_on"].startswith("19 texts of ")  # two of them are held out


def test_texts_of_the_small_language_are_the_same_every_time_and_have_no_questions(tmp_path):
    write_texts(tmp_path, 3)
    found = [path.read_text().strip() for path in sorted(tmp_path.iterdir())]
    assert found == [make_text(number) for number in range(3)]
    assert len(set(found)) == 3
    assert not any(word in text for text in found for word in ("Find", "?", "<|"))


def test_exercises_depend_on_the_seed_alone_and_quote_their_chunks():
    tokenizer = byte_level_bpe()
    first, again = (Exercises(tokenizer, texts(), seed=4, **SMALL) for _ in range(2))
    kinds, lengths = set(), set()
    for _ in range(40):
        one, other = first.draw(), again.draw()
        assert torch.equal(one.chunks, other.chunks) and torch.equal(one.question, other.question)
        assert one.prefix == other.prefix and one.answer == other.answer
        kinds.add(one.open)
        lengths.add(one.chunks.shape[1] > 1)
        if not one.open:  # the answer stands in a chunk, word for word
            for row, question in enumerate(one.question.tolist()):
                answer = " ".join(map(str, question[one.answer :]))
                chunks = one.chunks[row // one.questions].tolist()
                assert any(answer in " ".join(map(str, chunk)) for chunk in chunks)
    assert kinds == lengths == {False, True}  # open questions, and documents of a single chunk


def test_texts_that_are_all_too_short_are_refused():
    with pytest.raises(ValueError, match="no text has 24 tokens"):
        Exercises(byte_level_bpe(), [[1, 2, 3]], **SMALL)
