"""``ragkv doctor``: the checks of `ragkv.doctor` on one screen."""

from pathlib import Path
from typing import Annotated

import typer

from ragkv.doctor.checks import examine

COLOURS = {"ok": typer.colors.GREEN, "warning": typer.colors.YELLOW, "problem": typer.colors.RED}


def doctor(
    model: Annotated[Path | None, typer.Argument(help="A folder with a model's files, to be looked at too.")] = None,
    store: Annotated[str, typer.Option(help="The store's folder or URL, there already or not.")] = "kv-store",
) -> None:
    """Look at what ragkv needs here, and say what to do where it is not fine (exit code 1 if there is a problem)."""
    states = set()
    for check in examine(store, model):
        states.add(check.state)
        typer.echo(f"{typer.style(f'{check.state:8}', COLOURS[check.state])} {check.name:13} {check.detail}")
        if check.advice:
            typer.echo(f"{'':8} {'':13} -> {check.advice}")
    raise typer.Exit(1 if "problem" in states else 0)
