"""``ragkv calibrate MODEL``: find the options of the probe that suit a model, and save them for its profiles."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from ragkv.experiment.calibration import (
    DEFAULT,
    OPTIONS,
    calibrate,
    calibration_file,
    calibration_prompts,
    write_calibration,
)
from ragkv.experiment.inputs import find_model
from ragkv.models.load import embedded_models, load_model, load_tokenizer
from ragkv.rag.arguments import BehindPrefixOption, ContextOption
from ragkv.rag.chunk_context import ChunkContext
from ragkv.results.outputs import model_folders
from ragkv.store import KVStore
from ragkv.store.precompute import precompute


def calibrate_command(
    model: Annotated[str, typer.Argument(help="An embedded model, a local folder or a hub id, as profiles name it.")],
    prompts: Annotated[int, typer.Option(min=1, help="How many prompts to compare on.")] = 20,
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a prompt (default: 1024 for embedded models, 4096 for others).")
    ] = None,
    ratio: Annotated[float, typer.Option(min=0, max=1, help="The probe's ratio.")] = 0.02,
    context: ContextOption = None,
    behind_prefix: BehindPrefixOption = False,
    device: Annotated[str, typer.Option(help="auto is the GPU if there is one.")] = "auto",
    root: Annotated[Path, typer.Option(help="The folder that holds params/.")] = Path("."),
    out: Annotated[
        Path | None, typer.Option(help="The file to save to (default: where profiles of this model look for it).")
    ] = None,
) -> None:
    """Find the probe's options for a model, without labels, by comparing with its full prefill."""
    path = out or calibration_file(root, model_folders([model])[model])
    if out is None and not (root / "params").is_dir():
        raise ValueError(f"there is no folder {root / 'params'} to save to: give --root, or a file with --out")
    source = find_model(model, root)
    tokens = length or (1024 if model in embedded_models() else 4096)
    made = calibration_prompts(model, load_tokenizer(source), prompts, tokens)
    loaded, _ = load_model(source, device=device)
    chunk_context = ChunkContext.find(loaded, context, behind_prefix)
    made = [chunk_context(prompt) for prompt in made]
    store = KVStore("memory://calibration")
    precompute(loaded, made, store)
    table = calibrate(loaded, made, store, ratio=ratio, progress=True)
    write_calibration(path, loaded, table, chunk_context)
    typer.echo(f"{model}: {best_options(table)}; saved to {path}, for methods with `calibrated: true`")


def best_options(table: pd.DataFrame) -> str:
    """The best row of a calibration in words, beside the probe's default options."""
    best = table.iloc[0]
    options = ", ".join(f"{name} {best[name]:g}" for name in OPTIONS)
    default = table.loc[(table[OPTIONS] == pd.Series(DEFAULT)[OPTIONS]).all(axis=1), "divergence"].item()
    return (
        f"{options} is best, with a KL of {best['divergence']:.4f} from full prefill (default options: {default:.4f})"
    )
