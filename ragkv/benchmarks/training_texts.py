"""``python -m ragkv.benchmarks.training_texts FOLDER``: English text to train contexts on, without a download.

It comes with installed packages: what they say of themselves, their docstrings, Python's language reference, and the
essays that are kept out of evaluation (`ragkv.benchmarks.essays`). So the texts depend on what is installed.
"""

import ast
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import typer

from ragkv.benchmarks.essays import read_essays

SHORTEST = 1000  # characters of a text
MOST_DOCSTRINGS = 20_000  # characters of a package's docstrings, so that no package outweighs the others


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
        texts[f"docstrings-{about['name']}"] = _beginning(map(prose, _docstrings(package)), MOST_DOCSTRINGS)
    return {name: texts[name] for name in sorted(texts) if len(texts[name]) >= SHORTEST}


def _beginning(paragraphs: Iterable[str], most: int) -> str:
    """The first paragraphs, up to the one with which they have `most` characters."""
    taken: list[str] = []
    for paragraph in filter(None, paragraphs):
        taken.append(paragraph)
        if sum(map(len, taken)) >= most:
            break
    return "\n\n".join(taken)


def _docstrings(package: Distribution) -> Iterator[str]:
    """The docstrings of a package's Python files, each once."""
    seen = set()
    for path in package.files or ():
        if path.suffix != ".py" or "tests" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):  # moved away, or a template of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text and text not in seen:
                    seen.add(text)
                    yield text


def write_texts(folder: Annotated[Path, typer.Argument(help="Where the texts are written.")]) -> None:
    """Write English text to train contexts on."""
    texts = english_texts()
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    typer.echo(f"{folder}: {len(texts)} texts, {sum(map(len, texts.values())) / 1e6:.1f} million characters")


if __name__ == "__main__":
    typer.run(write_texts)
