"""``ragkv doctor``: is everything here as the package needs it, and if not, what to do about it.

A check is a function that returns a `Check`; `examine` runs all of them.
"""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from ragkv.costs.shape import SHAPES, Shape
from ragkv.doctor.disk import room, speed
from ragkv.doctor.exactness import ATTENTION, LOGITS, attention_error, family_model, logits_error, same_answer
from ragkv.doctor.model_files import folder_problems, weights_in
from ragkv.models import flashinfer
from ragkv.models.checks import FAMILIES
from ragkv.models.load import model_source
from ragkv.store import KVStore
from ragkv.store.verify import problem
from ragkv.tiny.sums import changed
from ragkv.tiny.train import FAMILIES as TINY
from ragkv.version import __version__

State = Literal["ok", "warning", "problem"]
SAMPLE = 8  # segments of a store that are read
LITTLE = 1e9  # bytes that are soon filled
TOKENS = 8192  # of the prompt whose loading is estimated


@dataclass(frozen=True)
class Check:
    """What was looked at, how it is, and what to do where it is not fine."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(store: str, model: Path | None = None) -> Iterator[Check]:
    """All checks, one after the other; one that fails unexpectedly is a problem itself.

    Parameters
    ----------
    store
        A store's folder or URL, whether it is there yet or not.
    model
        A folder with a model's files.
    """
    checks: dict[str, Callable[[], Check]] = {"versions": versions, "GPU": gpu}
    checks |= {name: partial(attention, name) for name in ("triton", "flashinfer")}
    checks |= {name: partial(seams, name) for name in FAMILIES}
    checks |= {"disk": partial(disk, store), "store": partial(segments, store)}
    checks |= {name: partial(embedded, name) for name in (f"tiny-{family}" for family in TINY)}
    checks |= {"model": partial(model_folder, model)} if model is not None else {}
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Check(name, "problem", text, "this check could not be made: see what its message says")


def versions() -> Check:
    """Whether what the package requires is installed."""
    try:
        required = [Requirement(text) for text in requires("ragkv") or []]
    except PackageNotFoundError:
        return Check("versions", "warning", "ragkv is found, but not installed", "run `pip install -e .` in its folder")
    needed = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [f"{r.name} is {found or 'missing'}, needs {r.specifier or 'any'}" for r in needed if (found := _wrong(r))]
    if wrong:
        return Check(
            "versions", "problem", "; ".join(wrong), "run `pip install -U ragkv`, or `make setup` in a checkout"
        )
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return Check("versions", "ok", f"ragkv {__version__}, Python {platform.python_version()}, {shown}")


def _wrong(required: Requirement) -> str | None:
    """The version that is installed instead of what is required; None if it fits."""
    try:
        found = version(required.name)
    except PackageNotFoundError:
        return "missing"
    return None if required.specifier.contains(found, prereleases=True) else found


def gpu() -> Check:
    """The GPUs that PyTorch sees, or why it sees none."""
    if torch.cuda.is_available():
        cards = []
        for index in range(torch.cuda.device_count()):
            free, total = (size / 1e9 for size in torch.cuda.mem_get_info(index))
            cards.append(f"{torch.cuda.get_device_name(index)}, {free:.0f} of {total:.0f} GB free")
        return Check("GPU", "ok", f"{'; '.join(cards)}; CUDA {torch.version.cuda}")
    if _driver_lists_gpus() and "CUDA_VISIBLE_DEVICES" not in os.environ:
        detail = f"there is one, but PyTorch {torch.__version__} does not see it"
        return Check("GPU", "problem", detail, "install PyTorch with a CUDA that the driver supports (see nvidia-smi)")
    return Check("GPU", "ok", f"none: everything runs on the CPU (threads: {torch.get_num_threads()})")


def _driver_lists_gpus() -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
        return "GPU 0" in listed.stdout
    return False


def attention(name: str) -> Check:
    """Whether a backend's kernel compiles and is right, where there is a GPU for it."""
    if not torch.cuda.is_available():
        return Check(name, "ok", "not looked at: it needs a GPU")
    if name == "flashinfer" and (reason := flashinfer.missing()):
        if reason.startswith("ModuleNotFoundError"):
            return Check(name, "ok", "not installed, and not needed: backend auto does without")
        return Check(name, "problem", reason, "install it anew for this PyTorch and CUDA, or remove it")
    try:
        error = attention_error(name)
    except ImportError as failure:
        return Check(
            name, "warning", f"{failure}: PyTorch's attention is used, which is slower", f"run `pip install {name}`"
        )
    except Exception as failure:  # a compiler's, a loader's or the GPU's
        text = f"it does not run: {type(failure).__name__}: {failure}".splitlines()[0]
        return Check(
            name, "problem", text, "it is compiled when first used: that needs nvcc or a C compiler, and ninja"
        )
    if not error <= ATTENTION:
        return Check(
            name, "problem", f"its attention is off by {error:.0e}", "use backend sdpa, and update the package"
        )
    return Check(name, "ok", "its kernel compiles, and its attention is that of PyTorch")


def seams(family: str) -> Check:
    """Whether this package and transformers compute the same, on a small random model of a family."""
    model = family_model(family)
    error = logits_error(model)
    advice = f"transformers {version('transformers')} differs from those that this package was tested with: try another"
    if not error <= LOGITS:
        return Check(family, "problem", f"a prefill that recomputes everything is off by {error:.0e}", advice)
    if not same_answer(model):
        return Check(family, "problem", "decoding goes on differently from transformers' generate", advice)
    return Check(family, "ok", "a prefill that recomputes everything, and decoding, equal those of transformers")


def disk(url: str) -> Check:
    """How fast keys and values come from where a store lies."""
    try:
        written, read = speed(url)
    except OSError as error:
        return Check("disk", "problem", f"{url} cannot be used: {error}", "give --store a folder that you can write to")
    model, shape = next((name, Shape.of(name)) for name in SHAPES)
    seconds = TOKENS * shape.bytes_per_token(2) / read
    detail = (
        f"writes {written / 1e9:.2f} GB/s, reads {read / 1e9:.2f} GB/s: {seconds:.1f} s to load {TOKENS:,} tokens of "
    )
    detail += model.split("/")[-1]
    if (free := room(url)) < LITTLE:
        return Check(
            "disk", "warning", f"{detail}; {free / 1e9:.2f} GB free", "make room, or give --store another folder"
        )
    return Check("disk", "ok", detail)


def segments(url: str) -> Check:
    """Whether a store opens, and some of its files are whole."""
    store = KVStore(url)
    if not (keys := store.keys()):
        return Check("store", "ok", f"{url} holds nothing yet")
    sample = keys[:: -(-len(keys) // SAMPLE)]
    broken = [key[:12] for key in sample if problem(store, key)]
    detail = f"{len(sample) - len(broken)} of {len(sample)} files read, of {len(keys)}, are whole"
    if broken:
        advice = "run precompute again on the same prompts: it rewrites damaged files"
        return Check("store", "problem", f"{detail}; damaged: {', '.join(broken)}", advice)
    return Check("store", "ok", detail)


def embedded(name: str) -> Check:
    """Whether an embedded model's files are as they were shipped."""
    if damaged := changed(Path(model_source(name))):
        return Check(name, "problem", f"missing or changed: {', '.join(damaged)}", "install ragkv again")
    return Check(name, "ok", "all files are there, and as they were written")


def model_folder(folder: Path) -> Check:
    """Whether a folder holds all that a model needs: configuration, weights, tokenizer."""
    if problems := folder_problems(folder):
        return Check("model", "problem", "; ".join(problems), f"download the model again into {folder}")
    shards = weights_in(folder)
    size = sum(path.stat().st_size for path in shards) / 1e9
    return Check("model", "ok", f"configuration, tokenizer, and {size:.2f} GB of weights in {len(shards)} files")
