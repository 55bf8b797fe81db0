"""``python -m ragkv.tiny.texts FOLDER``: texts in the embedded models' language, to train learned contexts on.

Each text is a document with statements of all kinds among plain sentences, and without questions. The benchmarks make
their documents with other seeds.
"""

from pathlib import Path
from random import Random
from typing import Annotated

import typer

from ragkv.tiny.corpus import make_document


def make_text(number: int) -> str:
    """Text `number`: 128 sentences, up to 40 of which are statements."""
    rng = Random(f"texts/{number}")
    chains, hops = rng.randint(2, 8), rng.randint(0, 2)
    needles, films = rng.randint(0, 8), rng.randint(0, 4)
    return make_document(rng, 128, chains=chains, hops=hops, needles=needles, films=films).text


def write_texts(
    folder: Annotated[Path, typer.Argument(help="The folder to write text files to.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 400,
) -> None:
    """Write texts in the embedded models' language, one a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:04d}.txt").write_text(make_text(number) + "\n")


if __name__ == "__main__":
    typer.run(write_texts)
