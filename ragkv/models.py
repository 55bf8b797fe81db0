"""Models: loading them, what a supported one must satisfy, and its identity."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ragkv.memory import explained
from ragkv.prompt import Prompt

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
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
        An embedded model (``"tiny-llama"``), a local folder, or an id on the Hugging Face hub.
    device
        ``"auto"`` (the first GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    dtype
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: the checkpoint's on a GPU, float32 on a CPU.
    device_map
        Spread the layers over several devices, as transformers does; `device` is then not used.
    trust_remote_code
        Run code that comes with the model's files. Off unless asked for.

    Raises
    ------
    ValueError
        Unknown model or dtype, an unsupported architecture, or a GPU asked for that is not there.
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
    with _found(name):
        model = AutoModelForCausalLM.from_pretrained(
            model_source(name),
            dtype=precision,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,  # never pickle
        )
    if device_map is None:
        with explained(f"the model {name!r}", torch.device(device), "use a larger GPU, or several by device_map"):
            model = model.to(device)
    check_model(model)
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone; `name` and errors as in `load_model`."""
    with _found(name):
        return AutoTokenizer.from_pretrained(model_source(name), trust_remote_code=trust_remote_code)


def model_source(name: str | Path) -> str | Path:
    """Where `from_pretrained` finds a model: an embedded one's folder, or the name itself."""
    return _WEIGHTS / name if str(name) in embedded_models() else name


@contextmanager
def _found(name: str | Path) -> Iterator[None]:
    known = f"model {str(name)!r} could not be loaded: it is none of the embedded ones ({', '.join(embedded_models())})"
    if "/" not in str(model_source(name)) and not Path(name).exists():  # the hub is not asked for a slip of the pen
        raise ValueError(f"{known}, no folder here has that name, and ids on the hub have an owner: owner/name")
    try:
        yield
    except (OSError, ValueError) as error:
        lines = str(error).splitlines()
        reason = lines[0] if isinstance(error, OSError) else " ".join(map(str.strip, lines))
        raise ValueError(f"{known}, and as a local folder or hub id it failed: {reason}") from error


def check_model(model: PreTrainedModel) -> None:
    """Refuse what reuse cannot be right for.

    Raises
    ------
    ValueError
        An architecture other than `FAMILIES`, or a rotary embedding whose frequencies change with the length.
    """
    check_config(model.config)
    if any(weight.device.type == "meta" for weight in model.parameters()):
        raise ValueError("some weights are offloaded: give device_map only devices whose memory holds them")


def check_config(config: PretrainedConfig) -> None:
    """The same from a model's configuration alone."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"architecture {config.model_type!r} is not supported: use a model of {', '.join(FAMILIES)}")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise ValueError(
            f"rotary embedding of type {rope!r}: its frequencies depend on the length, so stored keys cannot be "
            f"placed; supported are {', '.join(ROPE_TYPES)}"
        )


def check_prompt(model: PreTrainedModel, prompt: Prompt) -> None:
    """Refuse a prompt that the model cannot read whole.

    Raises
    ------
    ValueError
        More tokens than the model has positions or than its sliding window, or an id outside its vocabulary.
    """
    config, tokens = model.config, len(prompt.ids)
    if tokens > config.max_position_embeddings:
        raise ValueError(
            f"the prompt has {tokens} tokens, more than the model's {config.max_position_embeddings} positions: "
            "use fewer or shorter chunks"
        )
    window = sliding_window(model)
    if window is not None and tokens > window:
        raise ValueError(
            f"the model attends through a sliding window of {window} tokens, and the prompt has {tokens}: reuse "
            "needs full attention. Use a shorter prompt, or a checkpoint whose window is off "
            "(config.sliding_window = null)"
        )
    segments = prompt.segments(config.bos_token_id)
    longest = max((len(segment.context) + len(segment.ids) for segment in segments), default=0)
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"a chunk and its context have {longest} tokens, more than the model's {config.max_position_embeddings} "
            "positions: use shorter chunks or contexts"
        )
    contexts = {segment.context for segment in segments if segment.context}
    for token in (*map(int, prompt.tensor.aminmax()), *map(min, contexts), *map(max, contexts)):
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token id {token} is outside the model's vocabulary of {config.vocab_size}")


def check_room(model: PreTrainedModel, prompt: Prompt, new_tokens: int, advice: str) -> None:
    """Refuse a prompt whose answer of up to `new_tokens` would not fit behind it; `advice` ends the message.

    Raises
    ------
    ValueError
        Prompt and answer have more tokens than the model has positions.
    """
    tokens, positions = len(prompt.ids), model.config.max_position_embeddings
    if tokens + new_tokens > positions:
        raise ValueError(
            f"the prompt has {tokens} tokens and its answer up to {new_tokens} (max_new_tokens), together more than "
            f"the model's {positions} positions: {advice}"
        )


def sliding_window(model: PreTrainedModel) -> int | None:
    """The window in tokens, if any layer has an active one."""
    config = model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        active = getattr(config, "use_sliding_window", True)  # Mistral has no switch
        return getattr(config, "sliding_window", None) if active else None
    return None


_fingerprints: WeakKeyDictionary[PreTrainedModel, tuple[tuple, str]] = WeakKeyDictionary()  # only a memo


def fingerprint(model: PreTrainedModel) -> str:
    """The model's identity: a hash of its configuration and of every weight's bits.

    It does not depend on the device or on where the model came from; changed weights change it. It is computed once
    per model and again when its weights were replaced or changed in place; PyTorch keeps no record of changes in place
    through ``.data``: load the model again after such.
    """
    state = tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())
    remembered = _fingerprints.get(model)
    if remembered is None or remembered[0] != state:
        _fingerprints[model] = remembered = (state, _fingerprint(model))
    return remembered[1]


_CONFIG = (
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "head_dim hidden_act max_position_embeddings rms_norm_eps rope_parameters attention_bias mlp_bias"
).split()


def _fingerprint(model: PreTrainedModel) -> str:
    config = model.config.to_dict()
    digest = hashlib.sha256(json.dumps([config.get(name) for name in _CONFIG], sort_keys=True).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype} {_checksum(weight.detach())};".encode())
    return digest.hexdigest()


def _checksum(weight: Tensor) -> int:
    """A sum over all bits of a tensor, each place weighted differently; wraps at 64 bits, on any device alike."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.contiguous().view(-1).view(integers[weight.element_size()])
    total = 0
    for part, start in zip(bits.split(1 << 24), range(0, bits.numel(), 1 << 24), strict=True):
        place = torch.arange(start, start + part.numel(), device=part.device) * 0x9E3779B1 + 0x7F4A7C15
        total += int(((part.long() + (1 << 33)) * (place | 1)).sum())
    return total % (1 << 64)
