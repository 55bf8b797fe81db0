"""Pages from templates. Every value that is not `Markup` is escaped, so prompts and names are shown as plain text."""

from pathlib import Path

from markupsafe import Markup

from ragkv.figures.templates import templates
from ragkv.results.files import write_text


def fill_in(template: str, **values: object) -> Markup:
    """Fill in a template of this package.

    Returns
    -------
    Markup
        HTML, which other templates do not escape again.
    """
    return Markup(templates("ragkv.report").get_template(template).render(values))


def render(template: str, path: Path, **values: object) -> Path:
    """Fill in a template of this package and write the page.

    Returns
    -------
    Path
        The page.
    """
    write_text(path, fill_in(template, **values) + "\n")
    return path
