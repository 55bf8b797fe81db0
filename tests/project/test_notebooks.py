"""Committed notebooks are what a run makes of them, whenever and wherever it is: nothing in them changes by itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from hypothesis import given
from hypothesis import strategies as st
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from notebooks import METADATA, TIMES, WIDGET, run, tidy

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
VOLATILE = {
    "an address in memory": r"\b0x[0-9a-f]{6,}",
    "a duration": r"\bseconds=\d",
    "a rate": r"\d(it|prompts?|segments?|steps?)/s|s/(it|prompt|segment|step)\b",
    "a date": r"\b20\d\d-\d\d-\d\d\b",
    "a random id": r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-|#T_[0-9a-f]{5}",
    "a commit": r"\bcommit +[0-9a-f]{7}",
    "a path of one machine": r"(?<![\w.])/(home|tmp|root|Users|var)/",
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebooks_are_tidy(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert tidy(notebook) == notebook, "run `make notebooks`"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_say_nothing_that_changes(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            data = {"text/plain": output.text} if output.output_type == "stream" else output.data
            for kind, text in data.items():
                found = [what for what, pattern in VOLATILE.items() if kind[:4] == "text" and re.search(pattern, text)]
                assert not found, f"cell {cell.id} shows {', '.join(found)}: tag it `{TIMES}`, or show something else"


def executed(pieces: list[str], *, noise: bool) -> nbformat.NotebookNode:
    """A notebook that printed `pieces`; with noise, what one run adds."""
    results = [
        new_output("display_data", {"image/png": "abc="}),
        new_output("execute_result", {"text/html": "<p>1</p>"}),
    ]
    progress = [
        new_output("stream", name="stderr", text="3%"),
        new_output("display_data", {WIDGET: {"model_id": "5f"}}),
    ]
    printed = [new_output("stream", name="stdout", text=text) for text in (pieces if noise else ["".join(pieces)])]
    quiet = new_code_cell("work()", outputs=[*progress * noise, *printed, *results], id="a")
    times = new_code_cell("ttft()", outputs=printed * noise, id="b", metadata={"tags": [TIMES]})
    notebook = new_notebook(cells=[new_markdown_cell("# Title", id="c"), quiet, times], metadata=METADATA)
    if noise:
        quiet.metadata["execution"] = {"iopub.execute_input": "2001-01-01"}
        notebook.metadata["widgets"] = {"state": {"5f": {}}}
        notebook.metadata["language_info"] = {"name": "python", "version": "3.11.7"}
    return notebook


@given(st.lists(st.text(min_size=1), min_size=1))
def test_what_a_run_adds_is_left_out_and_nothing_else(pieces):
    noisy = executed(pieces, noise=True)
    before = nbformat.writes(noisy)
    assert tidy(noisy) == executed(pieces, noise=False)
    assert tidy(tidy(noisy)) == tidy(noisy)
    assert nbformat.writes(noisy) == before


def write(path: Path, *sources: str) -> Path:
    cells = [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), path)
    return path


def test_run_twice_is_the_same_file(tmp_path):
    """In its own folder, though what is printed comes in pieces and progress goes to stderr."""
    (tmp_path / "data.txt").write_text("found")
    loop = "import sys, time\nfor n in range(3):\n    print(n, flush=True)\n    print(time.time(), file=sys.stderr)"
    path = write(tmp_path / "n.ipynb", loop, "open('data.txt').read()")
    run(path)
    first = path.read_text()
    run(path)
    assert path.read_text() == first
    printed, read = nbformat.read(path, as_version=4).cells
    assert [output.text for output in printed.outputs] == ["0\n1\n2\n"]
    assert read.outputs[0].data["text/plain"] == "'found'"


def test_the_kernel_of_make_prints_no_warnings(tmp_path):
    shown = subprocess.run(
        ["make", "--no-print-directory", "--eval=path:; @echo $$JUPYTER_PATH", "path"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    path = write(tmp_path / "n.ipynb", "import sys\nprint(1)\nprint('mine', file=sys.stderr)")
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", path, tmp_path / "o.ipynb"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"JUPYTER_PATH": shown.stdout.strip(), "JUPYTER_PLATFORM_DIRS": "1"},
    )
    # Lines that are no warnings: papermill's own, and what a kernel says that is still busy when it is shut down.
    expected = ("Notebook: ", "KeyboardInterrupt caught in kernel")
    said = [line for line in done.stderr.splitlines() if not any(words in line for words in expected)]
    assert said == ["Executing notebook with kernel: python3"]
    assert nbformat.read(tmp_path / "o.ipynb", as_version=4).cells[-1].outputs[-1].text == "mine\n"


def test_a_notebook_that_fails_is_left_as_it_was(tmp_path):
    path = write(tmp_path / "n.ipynb", "1 + 1", "1 / 0")
    before = path.read_text()
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(path)
    assert path.read_text() == before
