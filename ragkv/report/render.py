"""Templates made into pages. Whatever is not `Markup` is escaped: prompts and names are text, never tags."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ragkv.results.files import write_text


def render(template: str, path: Path, **values: object) -> Path:
    """Write the page that a template of this package makes of `values`."""
    pages = Environment(
        loader=PackageLoader("ragkv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, pages.get_template(template).render(values) + "\n")
    return path
