"""``ragkv tiny``: train an embedded model from scratch."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from ragkv.tiny.train import STAGES, train


def tiny(
    out: Annotated[Path, typer.Option(help="The folder to write weights and tokenizer to.")],
    family: Annotated[Literal["llama", "mistral", "qwen"], typer.Option(help="The architecture.")] = "llama",
    seconds: Annotated[float, typer.Option(help="How long to train.")] = 530,
    steps: Annotated[int | None, typer.Option(help="Train this many steps instead: reproducible weights.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens per step.")] = 32768,
    peak: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    start_from: Annotated[
        Path | None, typer.Option(help="A folder of weights to continue from, on the longest documents only.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of weights and documents.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that make documents; use some on a GPU.")] = 0,
    device: Annotated[str, typer.Option(help="auto is the GPU if there is one.")] = "auto",
) -> None:
    """Train an embedded model from scratch."""
    train(
        family,
        seconds=seconds,
        steps=steps,
        tokens=tokens,
        peak=peak,
        seed=seed,
        workers=workers,
        device=device,
        out=out,
        stages=STAGES[-2:] if start_from else STAGES,
        start_from=start_from,
    )
