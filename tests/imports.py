"""What the package's modules import, read from their source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from helpers import ROOT

PACKAGE = ROOT / "ragkv"
MODULES = {path: path.relative_to(PACKAGE).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))}


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes
    ----------
    name
        Dotted and in full: ``from torch import nn`` imports ``torch.nn``.
    when
        ``"load"``: when the module itself is imported; ``"call"``: in a function; ``"typing"``: never, only for type
        checkers.
    extra
        The extra that a ``with extra(...)`` around it names, or None.
    """

    name: str
    when: Literal["load", "call", "typing"]
    extra: str | None

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]


@cache
def imports(path: Path) -> list[Import]:
    """Everything that a file imports, wherever in it."""
    return list(_inside(ast.parse(path.read_text()), path, "load", None))


def _inside(parent: ast.AST, path: Path, when: str, extra: str | None) -> Iterator[Import]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, when, extra) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write relative imports in full"
            yield from (Import(f"{node.module}.{alias.name}", when, extra) for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _inside(node, path, "call", extra)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _inside(node, path, "typing", extra)
        elif isinstance(node, ast.With):
            yield from _inside(node, path, when, _extra_of(node) or extra)
        else:
            yield from _inside(node, path, when, extra)


def _extra_of(node: ast.With) -> str | None:
    """The extra that ``with extra("name", ...)`` names."""
    for item in node.items:
        call = item.context_expr
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "extra":
            return ast.literal_eval(call.args[0])
    return None
