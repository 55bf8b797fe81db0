"""What the results say, in sentences: which method to take, at which share and cost, and how sure that is."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from ragkv.figures.style import label, percent
from ragkv.report.tables import BREAK
from ragkv.results.comparison import GROUP, has_times, summarise
from ragkv.results.fidelity import fidelity_by_method, pooled
from ragkv.results.ranking import FEWEST, Key, leaders, measure_of, partial_methods

FULL: Key = ("full_prefill", 1.0)
REUSE: Key = ("full_reuse", 0.0)
MOST_NAMED = 4  # methods that a sentence names


@dataclass(frozen=True)
class Compared:
    """All prompts of a benchmark as one table, and the summaries that more than one part of a report shows.

    Attributes
    ----------
    rows
        At the methods and ratios that all of the benchmark's tasks were run with.
    fidelity, scores
        By method and ratio, see `ragkv.results.fidelity.fidelity_by_method` and `ragkv.results.comparison.summarise`.
    """

    rows: pd.DataFrame
    fidelity: pd.DataFrame
    scores: pd.DataFrame

    @classmethod
    def of(cls, tasks: dict[str, pd.DataFrame]) -> "Compared":
        """From the rows of each task."""
        rows = pooled(tasks)
        return cls(rows, fidelity_by_method(rows).set_index(GROUP), summarise(rows).set_index(GROUP))

    @property
    def prompts(self) -> int:
        return self.rows["prompt"].nunique()


def conclude(compared: Compared) -> dict:
    """Sentences about a benchmark, and a table of the method to take for every share that one can afford.

    Returns
    -------
    dict
        ``prompts``, ``sentences``, and ``choices`` (a table; None if there are too few prompts to rank methods).
    """
    measure = measure_of(compared.rows)
    candidates = partial_methods(compared.rows)
    first = leaders(compared.rows, candidates, measure)
    if not first:
        few = f"too few to rank methods, which takes {FEWEST}."
        return {"prompts": compared.prompts, "sentences": [Markup.escape(few)], "choices": None}
    sentences = [_best(compared, first[0]), _tied(compared, first), _scores(compared, first[0])]
    return {
        "prompts": compared.prompts,
        "sentences": [sentence for sentence in sentences if sentence],
        "choices": _choices(compared, candidates, measure),
    }


def _best(compared: Compared, key: Key) -> Markup:
    """What the best method recovers, recomputes and costs."""
    text = Markup("{} {}").format(_name(compared, key), _achieves(compared, key))
    share = compared.scores["share"][key]
    recomputed = f"{_percent(share)} of the document" if share else "nothing"
    text += f", and recomputes {recomputed}"
    if not has_times(compared.scores):
        return text + "."
    if FULL not in compared.scores.index:
        return text + Markup(". Its median TTFT is {} ms.").format(_milliseconds(compared, key))
    return text + Markup(". Its median TTFT is {} ms: {} full prefill, which takes {} ms.").format(
        _milliseconds(compared, key), _times(compared, key), _milliseconds(compared, FULL)
    )


def _achieves(compared: Compared, key: Key) -> str:
    """How good a method is, with the interval: in gap recovered, or else in divergence, or else in score."""
    line = compared.fidelity.loc[key]
    if pd.notna(line.get("recovered_kl")):
        share = _with_interval(line, "recovered_kl", _percent)
        lost = f"what plain reuse loses, a KL divergence of {_decimal(compared.fidelity['kl'][REUSE])} nats"
        return f"comes closest to full prefill: it recovers {share} of {lost}"
    if pd.notna(line.get("kl")):
        return f"comes closest to full prefill: its KL divergence is {_with_interval(line, 'kl', _decimal)} nats"
    scores = compared.scores.loc[key].rename({"low": "score_low", "high": "score_high"})
    return f"has the highest score: {_with_interval(scores, 'score', _decimal)}"


def _tied(compared: Compared, first: list[Key]) -> Markup:
    """The methods that are not told apart from the best, and the fastest of all these."""
    best, *others = first
    if not others:
        return Markup("All other methods are behind it, compared prompt by prompt (95 %).")
    named = Markup(", ").join(_name(compared, key) for key in others[:MOST_NAMED])
    more = f" and {len(others) - MOST_NAMED} more" if len(others) > MOST_NAMED else ""
    text = Markup("These prompts do not tell it apart from {}{}").format(named, more)
    if not has_times(compared.scores):
        return text + "."
    fastest = min(first, key=lambda key: compared.scores["ttft"][key])
    if fastest == best:
        return text + "; it is the fastest of them."
    return text + Markup("; the fastest of them is {}, with a median TTFT of {} ms.").format(
        _name(compared, fastest), _milliseconds(compared, fastest)
    )


def _scores(compared: Compared, key: Key) -> Markup:
    """The score of the best method beside those of the two ends; nothing if it was ranked by its score alone."""
    if "kl" not in compared.fidelity:
        return Markup("")
    scores = compared.scores["score"]
    names = {key: "its score is", FULL: "full prefill's", REUSE: "plain reuse's"}
    texts = [f"{name} {scores[one]:.2f}" for one, name in names.items() if one in scores.index]
    return Markup.escape(", ".join(texts).capitalize() + ".")


def _choices(compared: Compared, candidates: list[Key], measure: str) -> pd.DataFrame:
    """A row for every share at which the best method changes: what to take if one can afford to recompute so much."""
    table = []
    last: Key | None = None
    for budget in sorted({ratio for _, ratio in candidates}):
        affordable = [key for key in candidates if key[1] <= budget]
        best, *tied = leaders(compared.rows, affordable, measure)
        if best == last:
            continue
        last = best
        row = {"method": _plain(compared, best), "up to": percent(budget)}
        line = compared.fidelity.loc[best]
        if pd.notna(line.get("recovered_kl")):
            row["gap recovered"] = _with_interval(line, "recovered_kl", _percent)
        elif pd.notna(line.get("kl")):
            row["KL"] = _with_interval(line, "kl", _decimal)
        row["score"] = f"{compared.scores['score'][best]:.2f}"
        if has_times(compared.scores):
            row["TTFT (ms)"] = _milliseconds(compared, best)
        if has_times(compared.scores) and FULL in compared.scores.index:
            row["speed-up"] = f"{compared.scores['ttft'][FULL] / compared.scores['ttft'][best]:.1f}"
        named = [_plain(compared, key) for key in tied[:MOST_NAMED]]
        if len(tied) > MOST_NAMED:
            named.append(f"and {len(tied) - MOST_NAMED} more")
        row["not told apart from"] = BREAK.join(named) or "none"
        table.append(row)
    return pd.DataFrame(table)


def _plain(compared: Compared, key: Key) -> str:
    return label(*key, compared.scores["share"][key])


def _name(compared: Compared, key: Key) -> Markup:
    return Markup("<strong>{}</strong>").format(_plain(compared, key))


def _with_interval(line: pd.Series, name: str, shown: Callable[[float], str]) -> str:
    value, low, high = (line[name + end] for end in ("", "_low", "_high"))
    return f"{shown(value)} ({shown(low)} to {shown(high)})" if pd.notna(low) else shown(value)


def _percent(share: float) -> str:
    """Whole numbers where that is enough; one digit more near 0 and near 100 %."""
    if abs(share) < 0.1:
        return f"{100 * share:.2g} %"
    return f"{100 * share:.1f} %" if 0.985 < share < 0.9995 else f"{100 * share:.0f} %"


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _milliseconds(compared: Compared, key: Key) -> str:
    milliseconds = 1e3 * compared.scores["ttft"][key]
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.2g}"


def _times(compared: Compared, key: Key) -> str:
    """The speed-up over full prefill, in words."""
    faster = compared.scores["ttft"][FULL] / compared.scores["ttft"][key]
    return f"{faster:.1f} times as fast as" if faster >= 1 else f"slower ({faster:.2f} times the speed) than"
