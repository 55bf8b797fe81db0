"""The site's pages that come from the repository: a page per module, a page per notebook, and what pages link to.

A link that works in the repository works on the site: what lies outside docs/ is copied, a folder becomes the list of
its files. Called by mkdocs (``hooks`` in mkdocs.yml).
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

ROOT = Path(__file__).resolve().parents[1]
DOCS, PACKAGE, NOTEBOOKS = ROOT / "docs", ROOT / "ragkv", ROOT / "notebooks"
LINK = re.compile(r"(?<=\]\()([^()#\s:]+)")  # a relative target, without its anchor


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Notebooks and modules at the end of the navigation, but for those that it has already."""
    there = {uri for entry in config.nav for uri in entry.values()}
    paths = [(path.stem, f"notebooks/{path.stem}.md") for path in sorted(NOTEBOOKS.glob("*.ipynb"))]
    notebooks = [{name: uri} for name, uri in paths if uri not in there]
    rooms = [{name: f"api/{name}.md"} for name, _ in _modules()]
    config.nav += [{"Notebooks": notebooks}, {"API reference": [{"overview": "api/index.md"}, *rooms]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The made pages, and what the written ones link to."""
    for made in (*_api(config), *_notebooks(config)):
        files.append(made)
    pages = list(files.documentation_pages())
    for page in pages:  # grows by those that are linked to
        for target in filter(None, (_target(page, link) for link in LINK.findall(page.content_string))):
            for needed in _copies(target, config):
                if needed.src_uri not in files.src_uris:
                    files.append(needed)
                    pages += [needed] if needed.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository, turned into the site's."""

    def on_site(link: re.Match) -> str:
        target, here = _target(page.file, link[1]), Path(page.file.src_uri).parent
        return link[1] if target is None else Path(os.path.relpath(_uri(target), here)).as_posix()

    return LINK.sub(on_site, markdown)


def _modules(package: Path = PACKAGE) -> Iterator[tuple[str, ast.Module]]:
    """Each module or package directly in a package."""
    for path in sorted(package.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.exists() and not path.stem.startswith("_"):
            yield path.stem, ast.parse(source.read_text())


def _about(module: ast.Module) -> str:
    """The first paragraph of its docstring."""
    return " ".join((ast.get_docstring(module) or "").partition("\n\n")[0].split())


def _reference(name: str, module: ast.Module) -> str:
    """A module's page; a package's has each of its modules in turn, and what those only hand on is not said twice."""
    page = f"# ragkv.{name}\n\n::: ragkv.{name}\n"
    if not (PACKAGE / name).is_dir():
        return page
    names = [node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    page += f"    options: {{members: {[name for name in names if not name.startswith('_')]}}}\n"
    for part, _ in _modules(PACKAGE / name):
        page += f"\n## {part}\n\n::: ragkv.{name}.{part}\n    options: {{heading_level: 3}}\n"
    return page


def _api(config: MkDocsConfig) -> Iterator[File]:
    rows = [f"| [`{name}`]({name}.md) | {_about(module)} |" for name, module in _modules()]
    names = ", ".join(f"[`{name}`][{module}.{name}]" for module, name in _exported())
    overview = [
        "# API reference",
        "",
        f"From `ragkv` itself: {names}.",
        "",
        "| room | what is in it |",
        "| --- | --- |",
    ]
    yield File.generated(config, "api/index.md", content="\n".join([*overview, *rows]) + "\n")
    for name, module in _modules():
        yield File.generated(config, f"api/{name}.md", content=_reference(name, module))


def _exported() -> Iterator[tuple[str, str]]:
    """The names that `ragkv` gives, and the modules that they come from."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            yield from ((str(node.module), alias.name) for alias in node.names)


def _notebooks(config: MkDocsConfig) -> Iterator[File]:
    exporter = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor()])  # words that were printed one by one
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, resources = exporter.from_filename(str(path), resources={"output_files_dir": f"{path.stem}_files"})
        yield File.generated(config, f"notebooks/{path.stem}.md", content=text)
        for name, data in resources["outputs"].items():
            yield File.generated(config, f"notebooks/{Path(name).as_posix()}", content=data)


def _target(page: File, link: str) -> Path | None:
    """The file or folder of the repository that a page of the repository links to."""
    if page.abs_src_path is None:
        return None
    target = (Path(page.abs_src_path).parent / unquote(link)).resolve()
    return target if target.exists() and target.is_relative_to(ROOT) else None


def _uri(target: Path) -> str:
    """Where it lies on the site: a module's source is its page of the reference, a notebook is a page."""
    uri = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
    if target == PACKAGE:
        return "api/index.md"
    if target.is_relative_to(PACKAGE) and (target.is_dir() or target.suffix == ".py"):
        return f"api/{Path(target.relative_to(PACKAGE).parts[0]).stem}.md"
    if target.suffix == ".ipynb":
        return uri.removesuffix(".ipynb") + ".md"
    return f"{uri}/index.md" if target.is_dir() else uri


def _copies(target: Path, config: MkDocsConfig) -> Iterator[File]:
    """What has to come from outside docs/, so that a link to it leads somewhere; modules have pages already."""
    if target.is_relative_to(DOCS) or _uri(target).startswith("api/"):
        return
    aside = {"inclusion": InclusionLevel.NOT_IN_NAV}
    if target.is_file():
        yield File.generated(config, _uri(target), abs_src_path=str(target), **aside)
        return
    inside = sorted(path for path in target.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    listed = [f"- [{path.relative_to(target).as_posix()}]({path.relative_to(target).as_posix()})" for path in inside]
    text = "\n".join([f"# {target.relative_to(ROOT).as_posix()}", "", *listed]) + "\n"
    yield File.generated(config, _uri(target), content=text, **aside)
    for path in inside:
        yield from _copies(path, config)
