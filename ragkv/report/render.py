"""Pages from templates. Every value that is not `Markup` is escaped, so prompts and names are shown as plain text."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ragkv.results.files import write_text


def render(template: str, path: Path, **values: object) -> Path:
    """Fill in a template of this package and write the page.

    Returns
    -------
    Path
        The page.
    """
    environment = Environment(
        loader=PackageLoader("ragkv.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(values) + "\n")
    return path
