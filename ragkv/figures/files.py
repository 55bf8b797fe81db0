"""Figures on disk: the same results give the same bytes."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ragkv.figures.style import styled
from ragkv.version import __version__


@styled
def save(figure: Figure, path: Path, source: Mapping[str, object]) -> Path:
    """Write a figure as PNG, to be shown, and as PDF, to be printed; both say in their metadata where it comes from.

    Parameters
    ----------
    path
        Where the PNG goes, ``<name>.png``; ``<name>.pdf`` lies beside it.
    source
        What the figure was drawn from: results file, provenance. In the PNG as ``Source``, in the PDF as ``Subject``.

    Returns
    -------
    Path
        The PNG's. No file holds a date, so drawing the same results again changes nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    described, maker = ", ".join(f"{key} {value}" for key, value in source.items()), f"ragkv {__version__}"
    figure.savefig(path, dpi=160, metadata={"Title": path.stem, "Software": maker, "Source": described})
    printed = {"Title": path.stem, "Creator": maker, "Subject": described, "CreationDate": None}
    figure.savefig(path.with_suffix(".pdf"), metadata=printed)
    return path
