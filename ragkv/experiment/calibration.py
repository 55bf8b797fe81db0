"""A model's calibration on disk: the probe's options that were found for it."""

from pathlib import Path

import pandas as pd
from transformers import PreTrainedModel

from ragkv.models.fingerprint import fingerprint
from ragkv.results.files import read_json, write_json
from ragkv.results.provenance import provenance


def write_calibration(path: Path, model: PreTrainedModel, table: pd.DataFrame) -> None:
    """Keep the best options for this model, with all that they were compared with."""
    compared = table.to_dict("records")
    best = {name: value for name, value in compared[0].items() if name != "divergence"}
    write_json(path, {"options": best, "compared": compared, "provenance": provenance(model)})


def read_calibration(path: Path, model: PreTrainedModel) -> dict:
    """The options that were found for this model.

    Raises
    ------
    ValueError
        No such file, or it is another model's.
    """
    run = f"run `python -m ragkv.calibrate MODEL --out {path}`"
    if not path.exists():
        raise ValueError(f"there is no calibration {path}: {run}")
    found = read_json(path, "")
    made_for = found["provenance"]["model"]
    if made_for != fingerprint(model):
        raise ValueError(
            f"{path} was made for another model ({made_for[:12]}..., this one is {fingerprint(model)[:12]}...): {run}"
        )
    return found["options"]
