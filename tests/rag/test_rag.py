"""Answers from documents: retrieval, reuse, errors, conversations, and the cache in `generate` of transformers."""

import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    BOS,
    fuse,
    make_model,
    memory_store,
    plain,
    random_context,
    random_ids,
    random_prompt,
    relative_error,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import TextStreamer

from ragkv import KVStore, Prompt, Rag, answer, decode, fused_prefill, generate_inputs, load_model, precompute
from ragkv.benchmarks.tiny import notes
from ragkv.eviction import get_eviction
from ragkv.fusion.cache import cache_argument
from ragkv.fusion.decoding import text_stream
from ragkv.fusion.sampling import Sampling
from ragkv.prompt.documents import read_documents
from ragkv.prompt.similar import best_first, bm25, words
from ragkv.prompt.templates import next_turn
from ragkv.rag.conversation import extend
from ragkv.selectors import get_selector

TEXTS = [
    "Late the cook wrote VAR PIGA 414. Today the baker sold the old boat.",
    "Then the poet wrote VAR REDA PIGA. Soon the monk lost the red coat.",
    "Once the judge keeps KEY Bagaville 170. Today the smith saw the tall tower.",
]


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny-llama", device="cpu")


def test_one_call_answers_and_streams_its_text(tiny, tmp_path):
    streamed = []
    third = get_selector("a3", ratio=0.33)
    store = tmp_path / "kv"
    first = answer("Find VAR REDA?", TEXTS, model=tiny, store=store, selector=third, on_token=streamed.append)
    assert first.text == "".join(streamed) == "VAR REDA 414"
    assert len(streamed) > 1
    assert [chunk.document for chunk in first.chunks] == ["1", "2", "3"]
    assert first.hit_rate == 0
    again = answer("Find KEY Bagaville?", TEXTS, model=tiny, store=KVStore(store), k=2)
    assert again.text == "KEY Bagaville 170"
    assert again.hit_rate == 1
    assert again.chunks[again.retrieved[0]].document == "3"
    assert [int(chunk.document) for chunk in again.chunks] == sorted(int(chunk.document) for chunk in again.chunks)


@pytest.mark.parametrize("behind_prefix", [False, True])
def test_chunks_are_computed_behind_a_learned_context(tiny, tmp_path, behind_prefix):
    context = random_context(tiny[0])
    context.save(tmp_path / "c.safetensors")
    found = []
    for where in (context, tmp_path / "c.safetensors", str(tmp_path / "c.safetensors")):
        reuse = get_selector("full_reuse")
        rag = Rag(TEXTS, tiny, store=tmp_path / "kv", selector=reuse, context=where, behind_prefix=behind_prefix)
        found.append(rag.ask("Find VAR REDA?"))
    assert [answer.hit_rate for answer in found] == [0, 1, 1]  # one context, so the same segments
    prompt = found[0].prompt
    assert prompt.learned == context
    assert prompt.contexts == ((prompt.prefix,) * 3 if behind_prefix else None)
    store = memory_store()
    precompute(tiny[0], [prompt], store)
    expected = fused_prefill(tiny[0], prompt, store, reuse).logits
    assert relative_error(found[0].prefill.logits, expected) < 1e-5
    with pytest.raises(ValueError, match="the context is of type int"):
        Rag(TEXTS, tiny, context=3)
    with pytest.raises(ValueError, match="there is no learned context no-such-file"):
        Rag(TEXTS, tiny, context="no-such-file")


def test_only_retrieved_chunks_are_computed(tiny):
    rag = Rag(TEXTS, tiny)
    first, second = rag.ask("Find KEY Bagaville?", k=1), rag.ask("Find KEY Bagaville?", k=3)
    assert (first.hit_rate, second.hit_rate) == (0, 0.5)  # 2 of 4 segments: the prefix and a chunk were stored
    assert rag.precompute().written == 0
    assert first.recomputed == int(0.15 * len(rag.chunks[2].ids))
    assert second.ttft == sum(second.seconds.values()) > 0


def test_a_selector_is_given_by_name_or_as_an_object(tiny):
    every = Rag(TEXTS, tiny, selector="full_prefill").ask("Find VAR REDA?", k=None)
    none = Rag(TEXTS, tiny, selector=get_selector("full_reuse")).ask("Find VAR REDA?", k=None)
    assert every.hit_rate is None and every.recomputed == len(every.prompt.document_span)
    assert none.hit_rate == 0 and none.recomputed == 0
    in_full = Rag(TEXTS, tiny).in_full(none)
    assert torch.equal(in_full.prefill.logits, every.prefill.logits) and in_full.text == every.text == "VAR REDA 414"
    assert in_full.seconds.keys() == {"retrieve", "prefill"}


def test_a_temporary_store_is_removed_with_its_rag(tiny):
    rag = Rag(TEXTS, tiny)
    rag.precompute()
    folder = Path(rag.store.url)
    assert folder.is_dir()
    del rag
    assert not folder.exists()


def test_two_hops_over_a_retrieved_corpus(tiny):
    """The second hop shares no name with the question, so it is retrieved only among enough chunks."""
    texts, questions = notes(12, 32, seed=0, films=6)
    rag = Rag(texts, tiny, chunk_tokens=64, chunk_by="sentences")
    rag.precompute()
    correct = 0
    for question in questions:
        reply = rag.ask(question.text, k=12)
        assert any(question.answers[0] in chunk.text for chunk in reply.chunks)
        correct += question.answers[0] in reply.text
    assert correct >= 5
    reuse = Rag(texts, tiny, store=rag.store, selector="full_reuse", chunk_tokens=64, chunk_by="sentences")
    correct_by_reuse = sum(question.answers[0] in reuse.ask(question.text, k=12).text for question in questions)
    assert correct_by_reuse < correct


# follow-ups


def endless(family):
    """A separate model without an end-of-sequence token, so that every generation has its full length."""
    model = make_model(family)
    model.generation_config.eos_token_id = None
    return model


@torch.inference_mode()
def forward(model, prompt):
    return model(input_ids=torch.tensor([prompt.ids])).logits[:, -1]


def test_follow_ups_equal_a_forward_over_the_whole_conversation(tiny):
    rag = Rag(TEXTS, tiny, selector=get_selector("a3", ratio=1.0))
    turn = rag.ask("Find VAR REDA?")
    for question, expected in (("Find KEY Bagaville?", "KEY Bagaville 170"), ("Find VAR PIGA?", "VAR PIGA 414")):
        before = turn.prompt.ids + tuple(turn.generation.ids)
        turn = rag.follow_up(turn, question)
        assert turn.prompt.ids[: len(before)] == before
        assert relative_error(turn.prefill.logits, forward(tiny[0], turn.prompt)) <= 1e-5
        assert turn.text == expected == rag.in_full(turn).text
        assert len(turn.prefill.selected) == len(turn.prompt.ids) - len(before)  # only the new tokens were computed
        assert turn.hit_rate is None and turn.recomputed == 0


@pytest.mark.parametrize("steps", [1, 5])
def test_extending_equals_a_forward_over_all_tokens(family, rng, steps):
    """A generation that was cut off by max_new_tokens has one token that has not run through the model yet."""
    model = endless(family)
    prompt, ids = random_prompt(rng), random_ids(rng, 7)
    prefill = fuse(model, prompt, "a3", ratio=1.0)
    generation = decode(model, prefill, max_new_tokens=steps)
    whole = replace(prompt, question=(*prompt.question, *generation.ids, *ids))
    further = extend(model, prefill, generation, ids)
    assert further.tokens == further.cache.get_seq_length() == len(whole.ids)
    assert relative_error(further.logits, plain(model, whole)[0]) <= 1e-5
    assert prefill.cache.get_seq_length() == len(prompt.ids)
    assert torch.equal(
        extend(model, prefill, generation, ids).logits, further.logits
    )  # prefill and generation are still usable
    expected = decode(model, fuse(model, whole, "full_prefill"), max_new_tokens=5).ids
    assert decode(model, further, max_new_tokens=5).ids == expected


def test_extending_after_an_eviction_equals_one_token_at_a_time(family, rng):
    """Positions continue after the whole prompt, however much of its cache was evicted."""
    model = endless(family)
    prompt, ids, store = random_prompt(rng), random_ids(rng, 4), memory_store()
    precompute(model, [prompt], store)
    half = get_eviction("snapkv", capacity_ratio=0.5)
    prefill = fused_prefill(model, prompt, store, get_selector("a3"), eviction=half)
    generation = decode(model, prefill, max_new_tokens=3)
    further = extend(model, prefill, generation, ids)
    assert further.cache.get_seq_length() < further.tokens == len(prompt.ids) + 7
    cache = decode(model, prefill, max_new_tokens=3).cache
    for place, token in enumerate([generation.ids[-1], *ids], len(prompt.ids) + 2):
        with torch.inference_mode():
            out = model(
                input_ids=torch.tensor([[token]]), position_ids=torch.tensor([[place]]), **{cache_argument(): cache}
            ).logits
    assert relative_error(further.logits, out[:, -1]) <= 1e-5
    with pytest.raises(ValueError, match="no tokens to continue with"):
        extend(model, prefill, generation, [])


def test_the_next_turn_follows_the_chat_template(tiny):
    tokenizer = tiny[1]
    turns = [{"role": "user", "content": "Find KEY Bagaville?"}, {"role": "assistant", "content": "170"}]
    whole = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": "Find VAR PIGA?"}], add_generation_prompt=True, return_dict=False
    )
    first = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    reply = tokenizer("170", add_special_tokens=False).input_ids
    assert [*first, *reply, *next_turn(tokenizer, "Find VAR PIGA?")] == whole


TURNS = {  # templates with the structure of each family's own
    "llama": "{% for m in messages %}<|head|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|end|>\n\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
    "qwen": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if not enable_thinking %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}",
}


@pytest.mark.parametrize("name", TURNS)
def test_the_next_turn_starts_directly_after_the_answer(name):
    from helpers import byte_level_bpe

    tokenizer = byte_level_bpe("<|eot|>", "<|im_end|>", "</s>")
    tokenizer.chat_template = TURNS[name]
    ends = {
        "llama": "<|eot|><|head|>user<|end|>\n\nWhy?<|eot|><|head|>assistant<|end|>\n\n",
        "mistral": "</s>[INST] Why? [/INST]",
        "qwen": "<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    }
    assert tokenizer.decode(next_turn(tokenizer, "Why?")) == ends[name]


def test_without_a_chat_template_the_next_turn_is_text():
    from ragkv.tiny.language import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(next_turn(tokenizer, "Find VAR PIGA?")) == "Find VAR PIGA?"


# retrieval


@given(st.lists(st.lists(st.sampled_from("abcde"), max_size=5), min_size=1, max_size=6))
def test_a_document_scores_if_it_shares_a_word_with_the_query(documents):
    """An empty query and an unknown word score 0 everywhere; a document scores above 0 exactly if it shares a word."""
    scores = bm25(documents)
    assert scores([]) == scores(["z"]) == [0.0] * len(documents)
    assert [score > 0 for score in scores(["a", "z"])] == ["a" in document for document in documents]


@given(st.lists(st.integers(0, 3)))
def test_the_best_comes_first_and_ties_keep_their_order(scores):
    assert best_first(scores) == [i for _, i in sorted((-score, i) for i, score in enumerate(scores))]


def test_words_of_any_language():
    assert words(["The café, x2!", "中文 text", ""]) == [["the", "café", "x2"], ["中", "文", "text"], []]


def test_without_a_match_chunks_keep_the_documents_order(tiny):
    rag = Rag(TEXTS, tiny)
    assert rag.retrieve("Find KEY Bagaville?", 1) == [rag.chunks[2]]
    assert rag.retrieve("?") == rag.retrieve("?", None) == rag.chunks
    assert rag.retrieve("Find KEY Bagaville?", 99)[0] == rag.chunks[2]


def test_a_retriever_of_ones_own_gives_indices_or_texts(tiny):
    asked = []

    def last_first(question, k):
        asked.append((question, k))
        return list(np.arange(len(TEXTS))[::-1])

    by_index = Rag(TEXTS, tiny, retriever=last_first).ask("Find VAR REDA?", k=2)
    assert asked == [("Find VAR REDA?", 2)]
    assert [chunk.document for chunk in by_index.chunks] == ["2", "3"]  # in the documents' order
    assert [by_index.chunks[i].document for i in by_index.retrieved] == ["3", "2"]

    class VectorStore:
        def similarity_search(self, query, k):
            return [SimpleNamespace(page_content=text) for text in (TEXTS[2], TEXTS[0])[:k]]

    by_text = Rag(None, tiny, retriever=VectorStore()).ask("Find KEY Bagaville?", k=2)
    assert [chunk.text for chunk in by_text.chunks] == [TEXTS[2], TEXTS[0]]  # as the store ranks them
    assert by_text.text == "KEY Bagaville 170"
    assert by_text.chunks[1].ids == Rag(TEXTS, tiny).chunks[0].ids  # so that it is stored once


def test_chunks_may_come_with_the_question(tiny):
    rag = Rag(None, tiny)
    reply = rag.ask("Find VAR REDA?", chunks=[TEXTS[1], Rag(TEXTS, tiny).chunks[0]])
    assert [chunk.text for chunk in reply.chunks] == [TEXTS[1], TEXTS[0]]
    assert (reply.retrieved, reply.hit_rate) == ((0, 1), 0)
    assert rag.ask("Find VAR PIGA?", chunks=TEXTS[:2]).hit_rate == 1
    for chunks, said in (([" "], "a chunk is ' ': give its text"), ([b"x"], "give its text"), ([3], "0 chunks")):
        with pytest.raises(ValueError, match=said):
            rag.ask("Find VAR REDA?", chunks=chunks)
    with pytest.raises(ValueError, match="the retriever found no chunk"):
        rag.ask("Find VAR REDA?")
    with pytest.raises(ValueError, match="the retriever is of type int"):
        Rag(TEXTS, tiny, retriever=3)
    with pytest.raises(ValueError, match="the retriever gave chunk 3: there are 3 chunks"):
        Rag(TEXTS, tiny, retriever=lambda question, k: [3]).ask("Find VAR REDA?")


def test_an_answer_says_whether_it_was_cut_off(tiny):
    rag = Rag(TEXTS, tiny)
    whole = rag.ask("Find VAR REDA?")
    cut = rag.ask("Find VAR REDA?", max_new_tokens=2)
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert len(cut.generation.ids) == 2 and whole.text.startswith(cut.text)
    assert rag.follow_up(whole, "Find VAR PIGA?", max_new_tokens=1).finish_reason == "length"
    exact = len(whole.generation.ids) + 1
    assert rag.ask("Find VAR REDA?", max_new_tokens=exact).finish_reason == "stop"
    assert "cut off" in repr(cut) and "cut off" not in repr(whole)
    assert len(repr(rag)) < 300 and "3 chunks" in repr(rag) and "float32 on cpu" in repr(rag)


def test_answers_can_be_sampled(tiny):
    hot = Sampling(temperature=5.0, seed=1)
    first = Rag(TEXTS, tiny, sampling=hot).ask("Find VAR REDA?", max_new_tokens=8)
    again = Rag(TEXTS, tiny, sampling=hot).ask("Find VAR REDA?", max_new_tokens=8)
    other = Rag(TEXTS, tiny, sampling=replace(hot, seed=2)).ask("Find VAR REDA?", max_new_tokens=8)
    assert first.generation.ids == again.generation.ids != other.generation.ids
    surely = Rag(TEXTS, tiny, sampling=replace(hot, top_k=1)).ask("Find VAR REDA?")
    assert surely.text == Rag(TEXTS, tiny).ask("Find VAR REDA?").text


def test_what_precompute_stores_is_told_before(tiny, capsys, tmp_path):
    rag = Rag(TEXTS * 40, tiny, store=tmp_path)
    expected = rag.bytes_to_store
    written = rag.precompute(progress=True).bytes
    assert "about" in capsys.readouterr().out
    chunks = {chunk.ids for chunk in rag.chunks}
    assert expected == pytest.approx(
        written * len(rag.chunks) / (len(chunks) + 1), rel=0.3
    )  # and a prefix, and headers


def test_text_that_the_model_cannot_read_is_a_warning(tiny):
    with pytest.warns(UserWarning, match=r"does not know \d+% of the documents' tokens"):
        Rag(["Quantum chromodynamics explains hadrons."], tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Rag(TEXTS, tiny)


# documents


def test_documents_come_from_folders_files_and_texts(tmp_path, tiny):
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("\ufefffirst", encoding="utf-8")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner/c.txt").write_text("third")
    (tmp_path / "d.docx").write_bytes(b"\xff")
    (tmp_path / "empty.md").write_text(" \n")
    whole = [("a.txt", "first"), ("b.md", "second"), ("inner/c.txt", "third")]
    for folder in (tmp_path, str(tmp_path), [tmp_path]):
        with pytest.warns(UserWarning, match=r"not read: 1 \.docx \(read are \.txt, \.md, \.html, \.htm, \.pdf\)"):
            read = read_documents(folder)
        assert [(d.name, d.text) for d in read] == whole
    mixed = read_documents(["a text", tmp_path / "b.md"])
    assert [(d.name, d.text) for d in mixed] == [("1", "a text"), ("b.md", "second")]
    (tmp_path / "b.md").write_text(TEXTS[2])
    assert Rag(tmp_path / "b.md", tiny).ask("Find KEY Bagaville?").text == "KEY Bagaville 170"


def test_each_chunk_ends_with_a_blank_line():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from ragkv.prompt.documents import Document, chunk_documents

    bare = Tokenizer(models.WordLevel({"a": 0, "\n": 1, "b": 2, "?": 3}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="?")
    chunks = chunk_documents(tokenizer, [Document("x", "aba"), Document("y", "b")], by="tokens", tokens=2)
    assert [(c.document, c.ids) for c in chunks] == [("x", (0, 2, 1, 1)), ("x", (0, 1, 1)), ("y", (2, 1, 1))]


# bad input


@pytest.mark.parametrize("question", ["", " \n", None, b"why?"])
def test_a_question_must_be_text(question, tiny):
    rag = Rag(TEXTS, tiny)
    reply = rag.ask("Find VAR PIGA?")
    for ask in (rag.ask, lambda q: rag.follow_up(reply, q), lambda q: answer(q, TEXTS, model="not loaded at all")):
        with pytest.raises(ValueError, match=re.escape(f"the question is {question!r}")):
            ask(question)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there are no documents"),
        ([" ", ""], "no text in any"),
        (None, "the retriever found no chunk: give documents"),
        (b"text", "documents are of type bytes"),
        (bytearray(b"text"), "documents are of type bytearray"),
        (3, "documents are of type int"),
        ({"a": "text"}, "documents are of type dict"),
        ("", "no folder or file ''"),
        ("a whole text. " * 999, r"no folder or file 'a whole text\. .*'; texts are given as a list"),
        (["text", "two\nlines\0"], "document 2, line 2: this is not text, it has a zero byte"),
        (["text", None], "document 2 is of type NoneType"),
        ([b"text"], "document 1 is of type bytes"),
        ("no-such-folder", "no folder or file 'no-such-folder'"),
        (["text", Path("no-such-file.md")], r"no folder or file no-such-file\.md"),
    ],
)
def test_documents_must_be_text(documents, message, tiny):
    with pytest.raises(ValueError, match=message):
        answer("Find VAR REDA?", documents, model=tiny)


def test_files_must_be_text(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"no \.txt, \.md, \.html, \.htm, \.pdf files in the folder"):
        read_documents(tmp_path)
    (tmp_path / "latin.txt").write_bytes("fine\ncaf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt, line 2: this is not UTF-8"):
        read_documents(tmp_path)
    (tmp_path / "archive.md").write_bytes(b"PK\0\1")
    with pytest.raises(ValueError, match=r"archive\.md, line 1: this is not text, it has a zero byte"):
        read_documents(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"document 1 is the name of a file, 'latin\.txt': give Path"):
        read_documents(["latin.txt"])


def test_a_prompt_that_is_too_long_is_refused_before_anything_is_computed(tiny, tmp_path):
    many = [f"{TEXTS[0]} {number}" for number in range(500)]
    with pytest.raises(ValueError, match=r"has \d+ tokens .* 8192 positions: retrieve fewer than 500 chunks \(k\)"):
        answer("Find VAR PIGA?", many, model=tiny, store=tmp_path / "kv")
    assert not (tmp_path / "kv").exists()
    with pytest.raises(ValueError, match=r"8192 positions: ask a shorter question, or cut smaller chunks"):
        answer("Find VAR PIGA? " * 3000, TEXTS[:1], model=tiny)
    rag = Rag(TEXTS, tiny)
    reply = rag.ask("Find VAR PIGA?")
    rag.max_new_tokens = 8192 - len(reply.prompt.ids) - 5
    with pytest.raises(ValueError, match="begin a new conversation"):
        rag.follow_up(reply, "Find VAR REDA?")


def test_models_selectors_and_chunks_must_be_known(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"none of the embedded ones \(tiny-llama"):
        answer("Find VAR REDA?", TEXTS, model="no-such-model")
    with pytest.raises(ValueError, match="type LlamaForCausalLM: give a name, a folder, or"):
        answer("Find VAR REDA?", TEXTS, model=tiny[0])
    with pytest.raises(ValueError, match="the model is a str: give a model of transformers"):
        answer("Find VAR REDA?", TEXTS, model=("tiny-llama", tiny[1]))
    with pytest.raises(ValueError, match=f"model {str(tmp_path)!r} could not be loaded"):
        answer("Find VAR REDA?", TEXTS, model=tmp_path)
    with pytest.raises(ValueError, match="chunks by 'pages': choose one of tokens, sentences, paragraphs"):
        answer("Find VAR REDA?", TEXTS, model=tiny, chunk_by="pages")
    with pytest.raises(ValueError, match="unknown selector 'nothing'"):
        answer("Find VAR REDA?", TEXTS, model=tiny, selector="nothing")
    with pytest.raises(ValueError, match="k is 0"):
        answer("Find VAR REDA?", TEXTS, model=tiny, k=0)


# a fused cache in `generate` of transformers


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": False, "num_beams": 2},
        {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3},
    ],
    ids=["greedy", "sampled", "beams", "several"],
)
def test_generate_continues_as_from_its_own_cache(family, rng, options):
    model = endless(family)
    prompt = random_prompt(rng)
    prefill = fuse(model, prompt, "a3", ratio=1.0)
    rows = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))

    def run(inputs):
        torch.manual_seed(3)
        return model.generate(**inputs, **options, max_new_tokens=12).tolist()

    ids = torch.tensor([prompt.ids])
    expected = run({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert run(generate_inputs(prompt, prefill, rows=rows)) == expected
    assert len(set(expected[0][len(prompt.ids) :])) > 2
    assert prefill.cache.get_seq_length() == len(prompt.ids)


def test_a_streamer_of_transformers_prints_the_answer(tiny, capsys):
    model, tokenizer = tiny
    reply = Rag(TEXTS, tiny, selector=get_selector("a3", ratio=1.0)).ask("Find VAR REDA?")
    inputs = generate_inputs(reply.prompt, reply.prefill)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**inputs, streamer=streamer, do_sample=False, max_new_tokens=8)
    assert capsys.readouterr().out.strip() == reply.text == "VAR REDA 414"


def test_generate_needs_the_complete_cache_of_this_prompt(llama, rng):
    prompt, other = Prompt([BOS], [random_ids(rng, 30)], random_ids(rng, 4)), random_prompt(rng)
    store = memory_store()
    precompute(llama, [prompt], store)
    half = get_eviction("streaming", capacity_ratio=0.5)
    evicted = fused_prefill(llama, prompt, store, get_selector("a3"), eviction=half)
    with pytest.raises(ValueError, match="the cache holds 17 of the prompt's 35 tokens"):
        generate_inputs(prompt, evicted)
    with pytest.raises(ValueError, match="the prefill is of 35 tokens"):
        generate_inputs(other, evicted)


@given(st.lists(st.sampled_from(["VAR", "KEY", "the", ".", "Bagaville", "414", "<s>"]), max_size=8))
def test_a_text_stream_adds_up_to_the_text(spoken):
    from ragkv.tiny.language import WORD_IDS, build_tokenizer

    tokenizer = build_tokenizer()
    streamed = []
    ids = [WORD_IDS[word] for word in spoken]
    with text_stream(tokenizer, streamed.append) as put:
        for token in ids:
            put(token)
    assert "".join(streamed) == tokenizer.decode(ids, skip_special_tokens=True)
    with text_stream(tokenizer, None) as put:
        assert put is None
