"""One row of results: what it says of a prompt answered with a method."""

from collections.abc import Mapping
from typing import Any

from ragkv.experiment.items import Item
from ragkv.experiment.methods import Method
from ragkv.fusion.prefill import Prefill
from ragkv.prompt import Prompt

Row = dict[str, Any]


def make_row(
    item: Item,
    method: Method,
    prefill: Prefill,
    prediction: str,
    scores: Mapping[str, float],
    fidelity: Mapping[str, float],
    *,
    ttft: float,
    tpot: float | None,
    size: int,
) -> Row:
    """The row of a prompt answered with a method; its columns are those that `evaluate` documents.

    Parameters
    ----------
    scores
        By metric, the task's own first.
    fidelity
        The columns of `ragkv.results.fidelity.fidelity`; empty if there is no full prefill to compare with.
    ttft, tpot
        Seconds.
    size
        Bytes of the files that the prompt is fused from.
    """
    prompt = item.prompt
    timings = prefill.timings
    return {
        "prompt": item.id,
        **item.labels,
        "method": method.name,
        "selector": method.kind,
        "ratio": method.selector.ratio,
        "prediction": prediction,
        "answers": list(item.answers),
        "score": next(iter(scores.values())),
        **{f"metric_{metric}": score for metric, score in scores.items()},
        **fidelity,
        "ttft": ttft,
        "tpot": tpot,
        "load": timings.get("open", 0.0) + timings.get("load", 0.0),
        "select": timings.get("select", 0.0),
        "prompt_tokens": len(prompt.ids),
        "document_tokens": len(prompt.document_span),
        "share": recomputed_share(prompt, prefill),
        "stored_bytes": size if method.selector.reuses else 0,
        "cache_tokens": prefill.cache.get_seq_length(),
        "cache_bytes": prefill.cache_bytes,
        "recomputed": prefill.selected.tolist(),
    }


def row_key(row: Row) -> tuple[str, str, float]:
    """What tells a row from the others of its task."""
    return row["prompt"], row["method"], row["ratio"]


def recomputed_share(prompt: Prompt, prefill: Prefill) -> float:
    """The share of the document's tokens that was recomputed."""
    span = prompt.document_span
    inside = (prefill.selected >= span.start) & (prefill.selected < span.stop)
    return inside.sum().item() / max(1, len(span))
