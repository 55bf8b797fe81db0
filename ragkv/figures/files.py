"""Figures as files: the same results give the same bytes."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from ragkv.figures.style import in_style
from ragkv.results.files import write_bytes
from ragkv.version import __version__


@in_style
def save(figure: Figure, path: Path, source: Mapping[str, object]) -> Path:
    """Write a figure as PNG for the screen and as PDF for print, with its source in the metadata of both.

    Parameters
    ----------
    path
        The PNG's path, ``<name>.png``; the PDF is written beside it.
    source
        What the figure was drawn from: results file, provenance. Stored as ``Source`` in the PNG and as ``Subject`` in
        the PDF.

    Returns
    -------
    Path
        The PNG's. Neither file holds a date, so drawing the same results again changes nothing.
    """
    described = ", ".join(f"{key} {value}" for key, value in source.items())
    software = f"ragkv {__version__}"
    of_png = {"Title": path.stem, "Software": software, "Source": described}
    of_pdf = {"Title": path.stem, "Creator": software, "Subject": described, "CreationDate": None}
    for file, options in ((path, {"dpi": 160, "metadata": of_png}), (path.with_suffix(".pdf"), {"metadata": of_pdf})):
        content = BytesIO()
        figure.savefig(content, format=file.suffix[1:], **options)
        write_bytes(file, content.getvalue())
    return path
