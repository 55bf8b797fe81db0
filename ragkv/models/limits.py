"""How far a model reaches: its positions, and up to which of them it computes in the same way."""

from transformers import PretrainedConfig, PreTrainedModel


def position_count(config: PretrainedConfig) -> int:
    """The longest prompt that the model can be used for.

    With YaRN or linear scaling this may be more than ``max_position_embeddings``, which many checkpoints leave as it
    was before scaling. With LongRoPE it is less: longer prompts have other frequencies, and an answer that grows so
    long would need all keys to be computed again.
    """
    rope = config.rope_parameters or {}
    positions = config.max_position_embeddings
    if is_longrope(config):
        return min(positions, rope["original_max_position_embeddings"])
    if rope.get("rope_type") not in ("linear", "yarn"):  # several embeddings have no type together
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(rope.get("factor", 1) * original))


def rope_types(config: PretrainedConfig) -> list[str]:
    """The types of the model's rotary embedding, or of its several ones."""
    parameters = config.rope_parameters or {}
    several = [value for value in parameters.values() if isinstance(value, dict)]
    return [rope.get("rope_type", "default") for rope in several or [parameters]]


def is_longrope(config: PretrainedConfig) -> bool:
    """Whether the rotary embedding has other frequencies for long prompts (arXiv 2402.13753)."""
    return "longrope" in rope_types(config)


def steady_positions(model: PreTrainedModel) -> int | None:
    """Up to how many tokens the model attends to all of them with the same frequencies; None without a limit."""
    limits = [sliding_window(model), position_count(model.config) if is_longrope(model.config) else None]
    return min((limit for limit in limits if limit is not None), default=None)


def sliding_window(model: PreTrainedModel) -> int | None:
    """The window in tokens, if any layer has an active one."""
    config = model.config
    if "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        active = getattr(config, "use_sliding_window", True)  # Mistral has no switch
        return getattr(config, "sliding_window", None) if active else None
    return None
