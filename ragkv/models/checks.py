"""Checks of models and prompts: reuse is refused where it could not be right."""

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedModel

from ragkv.prompt import Prompt, Segment

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model for which reuse cannot be right.

    Raises
    ------
    ValueError
        An architecture other than `FAMILIES`, a rotary embedding whose frequencies change with the length, or weights
        that are offloaded.
    """
    check_config(model.config)
    if any(weight.device.type == "meta" for weight in model.parameters()):
        raise ValueError("some weights are offloaded: give device_map only devices whose memory holds them")


def check_config(config: PretrainedConfig) -> None:
    """As `check_model`, as far as the configuration alone tells."""
    if config.model_type not in FAMILIES:
        raise ValueError(f"architecture {config.model_type!r} is not supported: use a model of {', '.join(FAMILIES)}")
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise ValueError(
            f"rotary embedding of type {rope!r}: its frequencies depend on the length, so stored keys cannot be "
            f"placed; supported are {', '.join(ROPE_TYPES)}"
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
    longest = max((segment.computed_tokens for segment in segments), default=0)
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"a chunk and its context have {longest} tokens, more than the model's {config.max_position_embeddings} "
            "positions: use shorter chunks or contexts"
        )
    lowest_and_highest = [int(token) for token in prompt.tensor.aminmax()]
    for context in {segment.context for segment in segments if segment.context}:
        lowest_and_highest += [min(context), max(context)]
    for token in lowest_and_highest:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"token id {token} is outside the model's vocabulary of {config.vocab_size}")


def check_room(model: PreTrainedModel, prompt: Prompt, new_tokens: int, advice: str) -> None:
    """Refuse a prompt whose answer of up to `new_tokens` would not fit after it.

    Parameters
    ----------
    advice
        Ends the message.

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
