"""Pages of the documentation site that are generated from the repository.

There is a page for every notebook and every module, and a copy of every file outside docs/ that a page links to, so
that a link that works in the repository also works on the site. A folder becomes a list of its files. mkdocs calls the
functions named ``on_*`` (see ``hooks`` in mkdocs.yml).
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
DOCS = ROOT / "docs"
PACKAGE = ROOT / "ragkv"
NOTEBOOKS = ROOT / "notebooks"
REFERENCE = "---\nsearch: {boost: 0.5}\n---\n\n"  # in the search, behind pages that explain
LISTING = "---\nsearch: {exclude: true}\n---\n\n"
LINK = re.compile(r"(?<=\]\()([^()#\s:]+)")  # the target of a relative link, without its anchor


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append notebooks and the API reference to the navigation, except for pages that it already contains."""
    listed = {uri for entry in config.nav for uri in entry.values()}
    notebooks = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        uri = f"notebooks/{path.stem}.md"
        if uri not in listed:
            notebooks.append({path.stem: uri})
    rooms = [{name: f"api/{name}.md"} for name, _ in _modules()]
    config.nav += [{"Notebooks": notebooks}, {"API reference": [{"overview": "api/index.md"}, *rooms]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and the files that pages link to."""
    for generated in (*_api(config), *_notebooks(config)):
        files.append(generated)
    pages = list(files.documentation_pages())
    for page in pages:  # the list grows: linked pages have links of their own
        for link in LINK.findall(page.content_string):
            target = _target(page, link)
            if target is None:
                continue
            for copy in _copies(target, config):
                if copy.src_uri in files.src_uris:
                    continue
                files.append(copy)
                if copy.is_documentation_page():
                    pages.append(copy)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as they are in the repository into links on the site."""

    def on_site(link: re.Match) -> str:
        target = _target(page.file, link[1])
        if target is None:
            return link[1]
        return Path(os.path.relpath(_uri(target), Path(page.file.src_uri).parent)).as_posix()

    return LINK.sub(on_site, markdown)


def _modules(package: Path = PACKAGE) -> Iterator[tuple[str, ast.Module]]:
    """The name and syntax tree of each public module or package directly in a package."""
    for path in sorted(package.iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.exists() and not path.stem.startswith("_"):
            yield path.stem, ast.parse(source.read_text())


def _summary(module: ast.Module) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((ast.get_docstring(module) or "").partition("\n\n")[0].split())


def _reference(name: str, module: ast.Module) -> str:
    """The reference page of a module, or of a package with all its modules.

    A package's own section has only what is defined in its ``__init__.py``: names that it imports from its modules are
    documented there.
    """
    page = f"{REFERENCE}# ragkv.{name}\n\n::: ragkv.{name}\n"
    if not (PACKAGE / name).is_dir():
        return page
    defined = [node.name for node in module.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    page += f"    options: {{members: {[name for name in defined if not name.startswith('_')]}}}\n"
    for part, _ in _modules(PACKAGE / name):
        page += f"\n## {part}\n\n::: ragkv.{name}.{part}\n    options: {{heading_level: 3}}\n"
    return page


def _api(config: MkDocsConfig) -> Iterator[File]:
    """The overview of the API reference, and a page per module or package."""
    names = ", ".join(f"[`{name}`][{module}.{name}]" for module, name in _exported())
    lines = ["# API reference", "", f"From `ragkv` itself: {names}.", "", "| room | what is in it |", "| --- | --- |"]
    lines += [f"| [`{name}`]({name}.md) | {_summary(module)} |" for name, module in _modules()]
    yield File.generated(config, "api/index.md", content="\n".join(lines) + "\n")
    for name, module in _modules():
        yield File.generated(config, f"api/{name}.md", content=_reference(name, module))


def _exported() -> Iterator[tuple[str, str]]:
    """The public names of `ragkv`, each with the module that its ``__init__.py`` takes it from for type checkers."""
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("ragkv."):
            yield from ((node.module, alias.name) for alias in node.names if not alias.name.startswith("_"))


def _notebooks(config: MkDocsConfig) -> Iterator[File]:
    """A page per notebook, and the images in its outputs.

    It is Markdown, so its links are checked and turned like those of other pages, and it needs no styles or scripts.
    """
    exporter = MarkdownExporter(preprocessors=[CoalesceStreamsPreprocessor()])  # joins text that was printed in pieces
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, resources = exporter.from_filename(str(path), resources={"output_files_dir": f"{path.stem}_files"})
        yield File.generated(config, f"notebooks/{path.stem}.md", content=text)
        for name, data in resources["outputs"].items():
            yield File.generated(config, f"notebooks/{Path(name).as_posix()}", content=data)


def _target(page: File, link: str) -> Path | None:
    """The file or folder in the repository that a link leads to; None for generated pages and for links elsewhere."""
    if page.abs_src_path is None:
        return None
    target = (Path(page.abs_src_path).parent / unquote(link)).resolve()
    return target if target.exists() and target.is_relative_to(ROOT) else None


def _uri(target: Path) -> str:
    """The path on the site. A module leads to its page of the reference, and a notebook is a page."""
    uri = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
    if target == PACKAGE:
        return "api/index.md"
    if target.is_relative_to(PACKAGE) and (target.is_dir() or target.suffix == ".py"):
        return f"api/{Path(target.relative_to(PACKAGE).parts[0]).stem}.md"
    if target.suffix == ".ipynb":
        return uri.removesuffix(".ipynb") + ".md"
    return f"{uri}/index.md" if target.is_dir() else uri


def _copies(target: Path, config: MkDocsConfig) -> Iterator[File]:
    """What must be copied to the site so that a link to a file or folder outside docs/ works."""
    if target.is_relative_to(DOCS) or _uri(target).startswith("api/"):
        return  # already on the site
    not_in_nav = {"inclusion": InclusionLevel.NOT_IN_NAV}
    if target.is_file():
        yield File.generated(config, _uri(target), abs_src_path=str(target), **not_in_nav)
        return
    contents = sorted(path for path in target.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"# {target.relative_to(ROOT).as_posix()}", ""]
    folder = Path(_uri(target)).parent
    for path in contents:
        link = Path(os.path.relpath(_uri(path), folder)).as_posix()  # a notebook is a page
        lines.append(f"- [{path.relative_to(target).as_posix()}]({link})")
    yield File.generated(config, _uri(target), content=LISTING + "\n".join(lines) + "\n", **not_in_nav)
    for path in contents:
        yield from _copies(path, config)
