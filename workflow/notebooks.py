"""``python workflow/notebooks.py FILE...``: run notebooks in place, and remove what changes from run to run."""

import sys
from collections.abc import Iterable
from copy import deepcopy
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TIMES = "times"  # the tag of cells that show times: they run, but their outputs are not kept
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
OF_A_RUN = {"execution", "papermill"}  # what tools write into a cell's metadata while they run it
WIDGET = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    """Run a notebook in its own folder and write it back, tidied. A notebook that fails is left as it was.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=None, record_timing=False, resources=folder).execute()
    nbformat.write(tidy(notebook), path)


def tidy(notebook: NotebookNode) -> NotebookNode:
    """The notebook as it is committed: the same after every run with the same results.

    What belongs to a run or a machine is left out: progress and warnings on stderr, widgets (whose ids are random), the
    Python version, and the outputs of cells with the tag ``times``. Pieces of standard output are joined.
    """
    kept = deepcopy(notebook)
    kept.metadata = nbformat.from_dict(METADATA)
    for cell in kept.cells:
        cell.metadata = nbformat.from_dict({key: value for key, value in cell.metadata.items() if key not in OF_A_RUN})
        if cell.cell_type == "code":
            cell.outputs = [] if TIMES in cell.metadata.get("tags", []) else _joined(filter(_kept, cell.outputs))
    return kept


def _kept(output: NotebookNode) -> bool:
    return output.get("name") != "stderr" and WIDGET not in output.get("data", {})


def _joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Join pieces of printed output: where a kernel cuts it into pieces depends on timing."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(name, flush=True)
        run(Path(name))
