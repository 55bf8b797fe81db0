"""Checks of models and prompts: reuse is refused where it could not be right."""

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ragkv.models.families import FAMILIES
from ragkv.models.limits import is_longrope, position_count, rope_types, sliding_window
from ragkv.models.read_state import state_of
from ragkv.prompt import Prompt, Segment

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "longrope")


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model for which reuse cannot be right.

    Raises
    ------
    ValueError
        A wrapper around a model, an architecture other than `FAMILIES`, a rotary embedding whose frequencies change
        with the length, offloaded weights, or something that changes results and cannot be known, see
        `ragkv.models.refusals`.
    """
    check_architecture(model)
    state_of(model)


def check_architecture(model: PreTrainedModel) -> None:
    """The part of `check_model` that looks at no weights and modules; `fingerprint` does the rest of it, too.

    Raises
    ------
    ValueError
        A wrapper around a model, an unsupported architecture or rotary embedding, or a model without a head.
    """
    check_type(model)
    check_config(model.config)
    if not hasattr(model, "lm_head"):
        raise ValueError(f"the model is a {type(model).__name__}, which predicts no tokens: load a model for causal LM")


def check_type(model: PreTrainedModel) -> None:
    """Refuse what is not a model of transformers, but a wrapper around one.

    Raises
    ------
    ValueError
        Says how to get at the model inside.
    """
    if isinstance(model, PreTrainedModel):
        return
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "the model was wrapped by torch.compile: give the model that was compiled (compiled._orig_mod); "
            "model.compile() compiles it without a wrapper"
        )
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ValueError(
                f"the model is a {kind} whose adapter adds tokens or keys to the prompt, which cannot be stored with "
                "chunks: use an adapter of weights, such as LoRA"
            )
        raise ValueError(
            f"the model is a {kind}: give the model inside, which contains the adapter (model.get_base_model()), or "
            "merge the adapter (model.merge_and_unload())"
        )
    raise ValueError(f"the model is a {kind}: give a model of transformers, such as load_model returns")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer of another library.

    Raises
    ------
    ValueError
        Says which one to use.
    """
    module = type(tokenizer).__module__
    if "mistral_common" in module:
        raise ValueError(
            f"the tokenizer is mistral-common's {type(tokenizer).__name__}, which cannot tell how parts of a prompt "
            "are tokenized: use the one of the checkpoint's tokenizer.json, "
            "AutoTokenizer.from_pretrained(name, mistral_format=False)"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"the tokenizer is a {module}.{type(tokenizer).__name__}: give one of transformers, such as "
            "AutoTokenizer.from_pretrained(name) returns"
        )


def check_config(config: PretrainedConfig) -> None:
    """As `check_model`, as far as the configuration alone tells."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"architecture {config.model_type!r} is not supported: use a model of {', '.join(FAMILIES)}")
    for rope in rope_types(config):
        if rope not in ROPE_TYPES:
            raise ValueError(
                f"rotary embedding of type {rope!r}: its frequencies depend on the length, so stored keys cannot be "
                f"placed; supported are {', '.join(ROPE_TYPES)}"
            )
    for entry in FAMILIES[config.model_type].unsupported:
        if getattr(config, entry, None):
            raise ValueError(
                f"the configuration of this {config.model_type} has {entry} = {getattr(config, entry)}, which is not "
                "supported: use a checkpoint without it"
            )


def check_prompt(model: PreTrainedModel, prompt: Prompt, segments: Sequence[Segment]) -> None:
    """Refuse a prompt that the model cannot read whole.

    Parameters
    ----------
    segments
        The prompt's, see `Prompt.segments`.

    Raises
    ------
    ValueError
        More tokens than the model has positions or than its sliding window, or an id outside its vocabulary.
    """
    config, tokens = model.config, len(prompt.ids)
    positions = position_count(config)
    if tokens > positions:
        raise ValueError(f"the prompt has {tokens} tokens, more than {_positions(config)}: use fewer or shorter chunks")
    window = sliding_window(model)
    if window is not None and tokens > window:
        raise ValueError(
            f"the model attends through a sliding window of {window} tokens, and the prompt has {tokens}: reuse "
            "needs full attention. Use a shorter prompt, or a checkpoint whose window is off "
            "(config.sliding_window = null)"
        )
    longest = max((segment.computed_tokens for segment in segments), default=0)
    if longest > positions:
        raise ValueError(
            f"a chunk and its context have {longest} tokens, more than {_positions(config)}: use shorter chunks or "
            "contexts"
        )
    lowest_and_highest = [int(token) for token in prompt.tensor.aminmax()]
    for context in {segment.context for segment in segments if segment.context}:
        lowest_and_highest += [min(context), max(context)]
    for token in lowest_and_highest:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token id {token} is outside the model's vocabulary of {config.vocab_size}")


def check_room(model: PreTrainedModel, tokens: int, new_tokens: int, advice: str) -> None:
    """Refuse a prompt of `tokens` tokens whose answer of up to `new_tokens` would not fit after it.

    Parameters
    ----------
    advice
        Ends the message.

    Raises
    ------
    ValueError
        Prompt and answer have more tokens than the model has positions.
    """
    if tokens + new_tokens > position_count(model.config):
        raise ValueError(
            f"the prompt has {tokens} tokens and its answer up to {new_tokens} (max_new_tokens), together more than "
            f"{_positions(model.config)}: {advice}"
        )


def _positions(config: PretrainedConfig) -> str:
    """The limit in words."""
    reason = " before its LongRoPE changes the frequencies" if is_longrope(config) else ""
    return f"the model's {position_count(config)} positions{reason}"
