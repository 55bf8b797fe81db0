"""Mistakes that research code of this field was found to make: each has a test that would have caught it."""

import ast
import json
import re
import subprocess
import tomllib
from random import Random

import pytest
import torch
from helpers import (
    BOS,
    FAMILIES,
    RATIO_SELECTORS,
    ROOT,
    fuse,
    make_model,
    plain,
    random_ids,
    relative_error,
    shared_model,
)

from ragkv import Prompt
from ragkv.benchmarks.longbench import LongBench
from ragkv.models.attention import get_backend
from ragkv.selectors import SELECTORS

TRACKED = [
    ROOT / name
    for name in subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if name
]
TEXTS = [
    path for path in TRACKED if path.suffix in {".py", ".ipynb", ".yaml", ".yml", ".toml", ".sh", ".md", ".jinja", ""}
]


def prompt_of(*chunks: int, question: int = 5) -> Prompt:
    rng = Random(str(chunks))
    return Prompt([BOS, *random_ids(rng, 3)], [random_ids(rng, n) for n in chunks], random_ids(rng, question))


@pytest.mark.parametrize("chunks", [(16,), (9, 4, 11)])
def test_attention_links_are_computed_and_differ(llama, chunks):
    """Positions of EPIC's links were left at zero for the caller to fill in: one token, again and again."""
    prompt = prompt_of(*chunks)
    chosen = [p for p in fuse(llama, prompt, "epic", ratio=0.5).selected.tolist() if p in prompt.document_span]
    assert len(set(chosen)) == len(chosen) == sum(chunks) // 2
    assert all(span.start in chosen for span in prompt.chunk_spans)


def test_the_mask_depends_on_positions_not_on_a_flag_given_as_text():
    """A mask's mode was a text that was only asked whether it is empty: two modes, one mask."""
    torch.manual_seed(0)
    keys, values, queries = torch.randn(1, 1, 8, 4), torch.randn(1, 1, 8, 4), torch.randn(1, 1, 2, 4)
    attend = get_backend("sdpa")
    early, late = (attend(queries, keys, values, torch.tensor(at), 0.5) for at in ([0, 3], [6, 7]))
    assert torch.allclose(early[0, 0, 0], values[0, 0, 0])  # the first position sees itself alone
    weights = torch.softmax(queries[0, 0, 1] @ keys[0, 0].T * 0.5, dim=-1)
    assert torch.allclose(late[0, 0, 1], weights @ values[0, 0], atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_runs_on_every_family_with_nothing_else_set(family, name):
    """Two families called the mask function with an argument less, and read a setting that nothing had set."""
    prompt = prompt_of(12, 12)
    prefill = fuse(shared_model(family), prompt, name)
    assert prefill.logits.isfinite().all()
    assert prefill.cache.get_seq_length() == len(prompt.ids)


@pytest.mark.parametrize("name", RATIO_SELECTORS)
@pytest.mark.parametrize("chunks", [(1,), (1, 1), (3, 2)])
@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.34, 1.0])
def test_budgets_at_the_edges(llama, name, chunks, ratio):
    """A budget that came out as nothing, or as more than there is, went unguarded into top-k."""
    prompt = prompt_of(*chunks)
    selected = fuse(llama, prompt, name, ratio=ratio).selected.tolist()
    assert len([p for p in selected if p in prompt.document_span]) == int(ratio * sum(chunks))
    assert [p for p in selected if p in prompt.question_span] == list(prompt.question_span)


@pytest.mark.parametrize("layers", [1, 2, 5, 33])
def test_any_number_of_layers(layers):
    """A loop went over 28 layers, whatever the model had."""
    model = make_model("llama", num_hidden_layers=layers)
    prompt = prompt_of(7, 8)
    prefill = fuse(model, prompt, "full_reuse" if layers == 1 else "a3", **({} if layers == 1 else {"ratio": 1.0}))
    assert len(prefill.cache.layers) == layers
    if layers > 1:
        assert relative_error(prefill.logits, plain(model, prompt)[0]) < 1e-4


@pytest.mark.parametrize("path", [p for p in TRACKED if p.suffix in {".py", ".ipynb"}], ids=lambda p: p.name)
def test_everything_parses(path):
    """A script had a syntax error and had never run."""
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        text = "\n".join(re.sub(r"^( *)%.*$", r"\1pass", "".join(c["source"]), flags=re.M) for c in cells)
    ast.parse(text)


def test_no_command_is_cut_in_two():
    """A backslash with something behind it ends a shell command early: the next line ran as another command."""
    assert not [
        f"{path.name}:{number}"
        for path in TEXTS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if path.suffix in {".sh", ""} and re.search(r"\\[ \t]+(#.*)?$", line)
    ]


def test_no_paths_or_devices_of_one_machine():
    """Model paths, GPU numbers and links into someone's home were part of the code."""
    places = re.compile(
        "|".join(["/" + "home/", r"(?<![\w}])/" + "data/[a-z]+/", "CUDA_VISIBLE" + "_DEVICES *=", "cuda" + ":[0-9]"])
    )
    allowed = {"test_pitfalls.py", "load.py"}  # the docstring of load_model names a device as an example
    found = {path.name for path in TEXTS if path.suffix != ".ipynb" and places.search(path.read_text())}
    assert found <= allowed
    assert not [path for path in TRACKED if path.is_symlink()]


def test_the_readme_names_files_that_exist():
    """A command in the readme called a script where it was not."""
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_all_of_longbench_is_on():
    """All tasks but one had been commented out."""
    tasks = "narrativeqa qasper multifieldqa_en multifieldqa_zh hotpotqa 2wikimqa musique dureader gov_report qmsum multi_news vcsum trec triviaqa samsum lsht passage_count passage_retrieval_en passage_retrieval_zh lcc repobench-p"  # noqa: E501
    benchmark = LongBench(source="anywhere", tasks={task: {} for task in tasks.split()})
    assert len(benchmark.tasks) == 21


def test_every_dependency_is_used():
    """The list of dependencies held an inference server and more that nothing imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in project["dependencies"]}
    modules = {"pyyaml": "yaml", "rouge-score": "rouge_score"}
    code = "\n".join(path.read_text() for path in (ROOT / "ragkv").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (\w+)", code, re.M)) | {"pyarrow"}  # pandas' for parquet
    assert {modules.get(name, name) for name in names} <= imported
