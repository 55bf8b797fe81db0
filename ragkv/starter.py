"""``ragkv init FOLDER``: a folder of one's own with the profiles and the notebooks."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

PACKAGE = Path(__file__).parent
RECORDS = (  # what notebooks read
    "bench-h100-llama-3-8b.json",
    "bench-h200-llama-3-8b.json",
    "smollm2-gpu/overview-fidelity.csv",
    "smollm2-gpu/smollm2/ruler/niah_multikey_1.json",
)
CONTENTS = ("params", "notebooks", *(f"outputs/reference/{record}" for record in RECORDS))


def source() -> Path:
    """Where the profiles and notebooks lie: in the installed package, or beside it in a checkout."""
    installed = PACKAGE / "starter"
    return installed if installed.is_dir() else PACKAGE.parent


def init(
    folder: Annotated[Path, typer.Argument(help="A folder that is new or empty.")],
) -> None:
    """Write the profiles and the notebooks into a folder, to run and to change them there."""
    write_starter(folder)
    typer.echo(f"{folder}: profiles in params/, notebooks in notebooks/. To begin: cd {folder} && ragkv run smoke")


def write_starter(folder: Path) -> None:
    """Copy the profiles and the notebooks into a folder.

    Raises
    ------
    ValueError
        The folder has something in it already, or its place is taken by a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: give a new folder, so that nothing is overwritten")
    for name in CONTENTS:
        origin, copy = source() / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, copy, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        else:
            shutil.copyfile(origin, copy)
