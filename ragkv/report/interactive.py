"""Interactive figures: Vega-Lite specifications with their data, and the one script that draws them all.

The page needs no network. The script is embedded once, and every specification carries its own data.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import altair as alt
import pandas as pd
import vl_convert
from markupsafe import Markup

from ragkv.figures.style import BASELINES, Look, label, looks
from ragkv.results.comparison import GROUP, has_times, summarise
from ragkv.results.fidelity import fidelity_by_method

HEIGHT = 300
SHAPES = {  # what Vega calls matplotlib's markers, or their outlines
    "o": "circle",
    "s": "square",
    "D": "diamond",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "P": "cross",
    "*": "M0,-1 L.22,-.31 L.95,-.31 L.36,.12 L.59,.81 L0,.38 L-.59,.81 L-.36,.12 L-.95,-.31 L-.22,-.31 Z",
    "X": "M-.8,-.4 L-.4,-.8 L0,-.4 L.4,-.8 L.8,-.4 L.4,0 L.8,.4 L.4,.8 L0,.4 L-.4,.8 L-.8,.4 L-.4,0 Z",
    "p": "M0,-1 L.95,-.31 L.59,.81 L-.59,.81 L-.95,-.31 Z",
    "h": "M0,-1 L.87,-.5 L.87,.5 L0,1 L-.87,.5 L-.87,-.5 Z",
    "8": "M.4,-1 L1,-.4 L1,.4 L.4,1 L-.4,1 L-1,.4 L-1,-.4 L-.4,-1 Z",
    "H": "M-1,0 L-.5,-.87 L.5,-.87 L1,0 L.5,.87 L-.5,.87 Z",
    "d": "M0,-1 L.6,0 L0,1 L-.6,0 Z",
}
DASHES = {"-": [1, 0], "--": [6, 3], "-.": [6, 2, 1, 2], ":": [1, 2]}
AXES = {
    "share": ("recomputed document tokens (%)", "symlog"),
    "ttft": ("median TTFT (ms)", "linear"),
}
TOOLTIP = {  # columns of the data and what the tooltip calls them
    "name": "method",
    "value": "{what}",
    "interval": "95 % interval",
    "share": "recomputed (%)",
    "score": "score",
    "ttft": "median TTFT (ms)",
    "speed_up": "speed-up",
}


@cache
def script() -> Markup:
    """The JavaScript of Vega, Vega-Lite and vega-embed, safe within a ``<script>`` element."""
    vega: Any = vl_convert  # its annotations require what is optional
    return Markup(vega.javascript_bundle().replace("</script", "<\\/script"))


def charts(rows: pd.DataFrame) -> list[Markup]:
    """How well each method does, over the share that it recomputes and, if it was measured, over its TTFT, as JSON.

    Parameters
    ----------
    rows
        Results of one task.
    """
    what, data = _points(rows)
    return [_json(_chart(data, what, across)) for across in AXES if across in data]


def _points(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """What is drawn (the gap recovered, or else the score), and a row of data for each method and ratio."""
    table = summarise(rows)
    value = "score"
    fidelity = fidelity_by_method(rows)
    if "recovered_kl" in fidelity and fidelity["recovered_kl"].notna().any():
        value = "recovered_kl"
        columns = [*GROUP, value, f"{value}_low", f"{value}_high"]
        table = table.drop(columns=["low", "high"]).merge(fidelity[columns], on=GROUP)
    else:
        table = table.rename(columns={"low": "score_low", "high": "score_high"})
    ends = table[[value, f"{value}_low", f"{value}_high"]].set_axis(["value", "low", "high"], axis=1)
    data = pd.concat([table[["method", "ratio", "score"]], ends], axis=1)
    data["name"] = [label(*key) for key in zip(table["method"], table["ratio"], table["share"], strict=True)]
    bounds = data["low"].map("{:.2f}".format) + " to " + data["high"].map("{:.2f}".format)
    data["interval"] = bounds.where(data["low"].notna())
    data["share"] = table["share"] * 100
    if has_times(table):
        full = table.loc[table["method"] == "full_prefill", "ttft"]
        data["ttft"] = table["ttft"] * 1e3
        data["speed_up"] = full.iloc[0] / table["ttft"] if len(full) else float("nan")
    numbers = data.select_dtypes("number").columns
    data[numbers] = data[numbers].round(4)
    return ("share of the gap recovered" if value == "recovered_kl" else "score"), data


def _chart(data: pd.DataFrame, what: str, across: str) -> alt.TopLevelMixin:
    """One figure: a line with its points and intervals for each method; a click in the legend chooses methods."""
    styles = looks(data["method"])
    methods = [name for name in styles if name not in BASELINES] + [name for name in BASELINES if name in styles]
    chosen = alt.selection_point(name="chosen", fields=["method"], bind="legend")
    legend = alt.Legend(
        title="click: choose methods (shift: several)",
        orient="bottom",
        columns=alt.ExprRef(f"max(1, floor(width / {60 + 7 * max(map(len, methods))}))"),
        labelLimit=330,
        titleLimit=330,
        symbolSize=90,
    )

    def scale(look: Callable[[Look], Any]) -> alt.Scale:
        return alt.Scale(domain=methods, range=[look(styles[name]) for name in methods])

    title, kind = AXES[across]
    base = alt.Chart(data.assign(fill=data["method"].map(lambda name: _fill(styles[name])))).encode(
        x=alt.X(f"{across}:Q", title=title, scale=_scale(kind, data[across].max()), axis=_axis(kind)),
        color=alt.Color("method:N", legend=legend, scale=scale(lambda style: style["color"])),
        opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.07)),
    )
    value = alt.Y("value:Q", title=what, scale=alt.Scale(zero=True, padding=8), axis=alt.Axis(tickCount=6))
    lines = base.mark_line(strokeWidth=1.5).encode(
        y=value,
        strokeDash=alt.StrokeDash("method:N", legend=legend, scale=scale(_dash)),
        order="ratio:Q",
    )
    whiskers = base.mark_rule(strokeWidth=0.8).encode(y=alt.Y("low:Q", title=what), y2="high:Q")
    points = base.mark_point(size=70).encode(
        y=value,
        shape=alt.Shape("method:N", legend=legend, scale=scale(lambda style: SHAPES[style["marker"]])),
        fill=alt.Fill("fill:N", scale=None, legend=None),
        tooltip=[
            alt.Tooltip(f"{column}:{'N' if column in ('name', 'interval') else 'Q'}", title=text.format(what=what))
            for column, text in TOOLTIP.items()
            if column in data and data[column].notna().any()
        ],
    )
    layers = alt.layer(
        lines.add_params(chosen).properties(name="lines"),
        whiskers.properties(name="whiskers"),
        points.properties(name="points"),
    )
    chart = layers.properties(width="container", height=HEIGHT)
    chart = chart.configure_axis(labelFontSize=12, titleFontSize=12)
    return chart.configure_legend(labelFontSize=12, titleFontSize=12)


def _scale(kind: str, highest: float) -> alt.Scale:
    if kind == "symlog":
        return alt.Scale(type="symlog", constant=1, domain=[0, highest * 1.1], nice=False)
    return alt.Scale(zero=True)


def _axis(kind: str) -> alt.Axis:
    return alt.Axis(values=[0, 1, 2, 5, 10, 20, 50, 100]) if kind == "symlog" else alt.Axis(tickCount=6)


def _dash(style: Look) -> list[int]:
    return DASHES.get(style.get("linestyle", "-"), [3, 3])


def _fill(style: Look) -> str:
    """The colour within a marker: paler where matplotlib fills it by half."""
    fill = style.get("fillstyle", "full")
    return "white" if fill == "none" else style["color"] if fill == "full" else style["color"] + "66"


def _json(chart: alt.TopLevelMixin) -> Markup:
    """The specification, safe within a ``<script>`` element."""
    return Markup(chart.to_json(indent=None).replace("<", "\\u003c"))
