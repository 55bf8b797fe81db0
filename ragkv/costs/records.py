"""What a record of ``python -m ragkv.bench --shape`` is about: its rows, the model's shape, each row's prefill."""

import re
from dataclasses import replace
from typing import Any

import pandas as pd

from ragkv.costs.shape import SHAPES, Shape
from ragkv.selectors import SELECTORS, Selector, get_selector, selector_options

ON_GPU = ("", "cuda")  # tiers from which nothing is loaded; a full prefill has none


def own_rows(record: dict) -> pd.DataFrame:
    """A record's rows of this package's selectors, without those of transformers' own prefill."""
    rows = pd.DataFrame(record["rows"]).fillna({"tier": ""})
    return rows[rows["selector"].isin(SELECTORS)].reset_index(drop=True)


def shape_of(record: dict) -> Shape:
    """The shape of the model that was measured."""
    parameters = record["parameters"]
    shape = Shape.of(next(model for model in SHAPES if parameters["shape"] in model.lower()))
    layers = str(parameters.get("layers"))
    return replace(shape, layers=int(layers)) if re.fullmatch(r"\d+", layers) else shape


def prefills_of(rows: pd.DataFrame) -> list[tuple[Selector, int]]:
    """The selector and the prompt's length in tokens, for each row."""
    return [(_selector(row), int(row["tokens"])) for row in rows.to_dict("records")]


def _selector(row: dict) -> Selector:
    known = selector_options(row["selector"])
    names = [name for name in ("ratio", "hops", "keys", "layer") if name in known and pd.notna(row.get(name))]
    options: dict[str, Any] = {name: row[name] for name in names}
    for name in {"hops", "layer"} & options.keys():
        options[name] = int(options[name])  # a column with missing values holds floats
    return get_selector(row["selector"], **options)
