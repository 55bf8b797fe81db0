"""The figure that suits a task's results."""

import pandas as pd
from matplotlib.figure import Figure

from ragkv.figures.accuracy import accuracy_over_share, score_by_method
from ragkv.figures.needle import heat_map
from ragkv.results.comparison import summarise


def score_figure(rows: pd.DataFrame, title: str) -> Figure:
    """The figure that suits a task: heat maps over depth and length, curves over ratios, or intervals by method."""
    if has_depths(rows):
        return heat_map(rows, title)
    if has_ratios(rows):
        return accuracy_over_share(rows, title)
    return score_by_method(summarise(rows), title)


def has_depths(rows: pd.DataFrame) -> bool:
    """Whether results have a depth and a length each."""
    return {"depth", "length"} <= set(rows)


def has_ratios(rows: pd.DataFrame) -> bool:
    """Whether some method ran at several ratios."""
    return bool(rows.groupby("method")["ratio"].nunique().max() > 1)
