"""``ragkv doctor``: is everything here as ragkv needs it, and if not, what can be done about it?

A check is a function that returns a `Check`; `examine` runs all of them.
"""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch

from ragkv.costs.shape import SHAPES, Shape
from ragkv.doctor import packages
from ragkv.doctor.disk import free_bytes, speed
from ragkv.doctor.exactness import ATTENTION, LOGITS, attention_error, family_model, logits_error, same_answer
from ragkv.doctor.model_files import OWN_CODE, folder_problems, weights_in
from ragkv.models import flashinfer
from ragkv.models.families import FAMILIES
from ragkv.models.load import model_source
from ragkv.store import KVStore
from ragkv.store.verify import problem
from ragkv.tiny.sums import changed
from ragkv.tiny.train import FAMILIES as TINY
from ragkv.version import __version__

State = Literal["ok", "warning", "problem"]
SAMPLE = 8  # segments of a store that are read
NEARLY_FULL = 1e9  # free bytes below which a disk is worth a warning
TOKENS = 8192  # of the prompt whose loading time is estimated


@dataclass(frozen=True)
class Check:
    """What was checked, its state, what was found, and what to do about it where it is not fine."""

    name: str
    state: State
    detail: str
    advice: str = ""


def examine(store: str, model: Path | None = None) -> Iterator[Check]:
    """Run all checks, one after the other. One that fails unexpectedly is a problem itself, and the others go on.

    Parameters
    ----------
    store
        A store's folder or URL, whether it exists yet or not.
    model
        A folder with a model's files.
    """
    checks: dict[str, Callable[[], Check]] = {"versions": versions, "extras": extras, "GPU": gpu}
    for backend in ("triton", "flashinfer"):
        checks[backend] = partial(attention, backend)
    for family in FAMILIES:
        checks[family] = partial(exactness, family)
    checks["disk"] = partial(disk, store)
    checks["store"] = partial(segments, store)
    for family in TINY:
        checks[f"tiny-{family}"] = partial(embedded, f"tiny-{family}")
    if model is not None:
        checks["model"] = partial(model_folder, model)
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            yield Check(name, "problem", _first_line(error), "this check could not be made: see what its message says")


def versions() -> Check:
    """Whether everything that ragkv requires is installed, in versions that fit."""
    advice = "run `pip install -U ragkv`, or `make setup` in a checkout"
    try:
        wrong = [f"{name} is missing" for name in packages.missing()] + packages.outdated()
    except PackageNotFoundError:
        return Check("versions", "warning", "ragkv is found, but not installed", "run `pip install -e .` in its folder")
    if wrong:
        return Check("versions", "problem", "; ".join(wrong), advice)
    shown = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "safetensors"))
    return Check("versions", "ok", f"ragkv {__version__}, Python {platform.python_version()}, {shown}")


def extras() -> Check:
    """Which of ragkv's extras are installed; none has to be, but what is installed must fit."""
    try:
        absent = [name for name in packages.EXTRAS if packages.missing(name)]
        outdated = sorted({text for name in packages.EXTRAS for text in packages.outdated(name)})
    except PackageNotFoundError:
        return Check("extras", "ok", "not checked: ragkv is not installed")
    if outdated:
        return Check("extras", "problem", "; ".join(outdated), "run `pip install -U` with these packages")
    installed = [name for name in packages.EXTRAS if name not in absent]
    detail = f"installed: {', '.join(installed) or 'none'}"
    if absent:
        detail += f"; not installed: {', '.join(absent)}"
    return Check("extras", "ok", detail)


def gpu() -> Check:
    """The GPUs that PyTorch sees, or why it sees none."""
    if torch.cuda.is_available():
        cards = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            cards.append(f"{torch.cuda.get_device_name(index)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")
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
    """Whether a backend's kernel compiles and computes the right attention, where there is a GPU for it."""
    if not torch.cuda.is_available():
        return Check(name, "ok", "not checked: it needs a GPU")
    if name == "flashinfer" and (reason := flashinfer.missing()):
        if reason.startswith("ModuleNotFoundError"):
            return Check(name, "ok", "not installed, and not needed: backend auto does without")
        return Check(name, "problem", reason, "reinstall it for this PyTorch and CUDA, or remove it")
    try:
        error = attention_error(name)
    except ImportError as failure:
        detail = f"{failure}: PyTorch's attention is used, which is slower"
        return Check(name, "warning", detail, f"run `pip install {name}`")
    except Exception as failure:  # from a compiler, a loader or the GPU
        advice = "it is compiled when first used: that needs nvcc or a C compiler, and ninja"
        return Check(name, "problem", f"it does not run: {_first_line(failure)}", advice)
    if not error <= ATTENTION:  # NaN is a problem, too
        detail = f"its attention is off by {error:.0e}"
        return Check(name, "problem", detail, "use backend sdpa, and update the package")
    return Check(name, "ok", "its kernel compiles, and its attention equals PyTorch's")


def exactness(family: str) -> Check:
    """Whether ragkv and transformers compute the same on a small random model of a family."""
    model = family_model(family)
    error = logits_error(model)
    advice = f"ragkv was not tested with transformers {version('transformers')}, which differs: try another version"
    if not error <= LOGITS:
        return Check(family, "problem", f"a prefill that recomputes everything is off by {error:.0e}", advice)
    if not same_answer(model):
        return Check(family, "problem", "decoding gives other tokens than transformers' generate", advice)
    return Check(family, "ok", "a prefill that recomputes everything, and decoding, equal those of transformers")


def disk(url: str) -> Check:
    """How fast keys and values are read from where a store is."""
    try:
        written, read = speed(url)
    except OSError as error:
        return Check("disk", "problem", f"{url} cannot be used: {error}", "give --store a folder that you can write to")
    model = next(iter(SHAPES))
    seconds = TOKENS * Shape.of(model).bytes_per_token(2) / read
    detail = (
        f"writes {written / 1e9:.2f} GB/s, reads {read / 1e9:.2f} GB/s: "
        f"{seconds:.1f} s to load {TOKENS:,} tokens of {model.split('/')[-1]}"
    )
    free = free_bytes(url)
    if free < NEARLY_FULL:
        detail += f"; {free / 1e9:.2f} GB free"
        return Check("disk", "warning", detail, "free some space, or give --store another folder")
    return Check("disk", "ok", detail)


def segments(url: str) -> Check:
    """Whether a store opens, and a sample of its files is undamaged."""
    store = KVStore(url)
    keys = store.keys()
    if not keys:
        return Check("store", "ok", f"{url} holds nothing yet")
    every = -(-len(keys) // SAMPLE)  # rounded up, so that the sample spreads over all of them
    sample = keys[::every]
    damaged = [key[:12] for key in sample if problem(store, key)]
    detail = f"{len(sample) - len(damaged)} of {len(sample)} files read, of {len(keys)}, are whole"
    if damaged:
        advice = "run precompute again on the same prompts: it rewrites damaged files"
        return Check("store", "problem", f"{detail}; damaged: {', '.join(damaged)}", advice)
    return Check("store", "ok", detail)


def embedded(name: str) -> Check:
    """Whether an embedded model's files are as they were shipped."""
    if damaged := changed(Path(model_source(name))):
        return Check(name, "problem", f"missing or changed: {', '.join(damaged)}", "reinstall ragkv")
    return Check(name, "ok", "all its files are here and unchanged")


def model_folder(folder: Path) -> Check:
    """Whether a folder holds all that a model needs: configuration, weights, tokenizer."""
    if problems := folder_problems(folder):
        own_code = any(OWN_CODE in text for text in problems)
        advice = "use a model that transformers supports" if own_code else f"download the model again into {folder}"
        return Check("model", "problem", "; ".join(problems), advice)
    shards = weights_in(folder)
    size = sum(path.stat().st_size for path in shards) / 1e9
    return Check("model", "ok", f"configuration, tokenizer, and {size:.2f} GB of weights in {len(shards)} files")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
