"""Every figure, drawn from a table of results; one style, readable in grey and by the colour-blind."""

from ragkv.figures.accuracy import accuracy_over_share, score_by_method
from ragkv.figures.by_task import has_depths, has_ratios, score_figure
from ragkv.figures.capacity import break_even_over_length, over_corpus, predicted_over_measured
from ragkv.figures.equal_fidelity import speed_over_fidelity
from ragkv.figures.fidelity import gaps, recovered_over_share
from ragkv.figures.files import save
from ragkv.figures.latency import stages, ttft_by_method, ttft_over_length
from ragkv.figures.limits import attention_speed, roofline
from ragkv.figures.needle import heat_map
from ragkv.figures.style import label, looks
from ragkv.figures.tokens import attention_map, recomputed_tokens
from ragkv.figures.tradeoff import frontier

__all__ = [
    "accuracy_over_share",
    "attention_map",
    "attention_speed",
    "break_even_over_length",
    "frontier",
    "gaps",
    "has_depths",
    "has_ratios",
    "heat_map",
    "label",
    "looks",
    "over_corpus",
    "predicted_over_measured",
    "recomputed_tokens",
    "recovered_over_share",
    "roofline",
    "save",
    "score_by_method",
    "score_figure",
    "speed_over_fidelity",
    "stages",
    "ttft_by_method",
    "ttft_over_length",
]
