"""``python -m ragkv.calibrate MODEL``: find the options of the probe that suit a model."""

from pathlib import Path
from typing import Annotated

import typer

from ragkv.experiment.calibration import calibrate, calibration_prompts, write_calibration
from ragkv.models.load import embedded_models, load_model
from ragkv.store import KVStore
from ragkv.store.precompute import precompute


def calibrate_command(
    model: Annotated[str, typer.Argument(help="An embedded model, a local folder or a hub id.")],
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts to compare on.")] = 20,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt (default: 1024 for embedded models, 4096 for others).")
    ] = None,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="The probe's ratio.")] = 0.02,
    device: Annotated[str, typer.Option(help="auto is the GPU if there is one.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the result to this JSON file.")] = None,
) -> None:
    """Find the probe's options for a model, without labels, by comparing with its full prefill."""
    loaded, tokenizer = load_model(model, device=device)
    tokens = length or (1024 if model in embedded_models() else 4096)
    made = calibration_prompts(model, tokenizer, prompts, tokens)
    store = KVStore("memory://calibration")
    precompute(loaded, made, store)
    table = calibrate(loaded, made, store, ratio=ratio, progress=True)
    typer.echo(table.to_string(index=False, float_format="{:.4f}".format))
    if out:
        write_calibration(out, loaded, table)


if __name__ == "__main__":
    typer.run(calibrate_command)
