"""The report and the index: every number, link and anchor is right, and text from prompts is never markup."""

import ast
import csv
import re
import shlex
import shutil
from html import unescape
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.text import Text
from profiles import write_profile
from snakemake.cli import parse_config

from ragkv import figures
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.items import Item, write_items
from ragkv.experiment.methods import depends_on, identity
from ragkv.models.load import load_tokenizer
from ragkv.prompt import Prompt
from ragkv.report import write_index, write_report
from ragkv.report.examples import examples
from ragkv.report.model_files import ModelFiles
from ragkv.report.section import tokenizer_or_problem
from ragkv.report.tables import write_table
from ragkv.results.comparison import summarise
from ragkv.results.fidelity import fidelity_by_method
from ragkv.results.files import write_json, write_rows
from ragkv.results.frontier import costs
from ragkv.run import run_profile

HOSTILE = "<script>alert('1')</script> & 50% of_it"
METHODS = [("full_prefill", 1.0), ("full_reuse", 0.0), (HOSTILE, 0.15), (HOSTILE, 0.3), ("epic", 0.15), ("epic", 0.3)]
PROFILE = {
    "models": ["tiny-llama", "tiny-qwen"],
    "benchmarks": {
        "longbench": {"source": "tiny", "tasks": {"2wikimqa": {"prompts": 4, "ratios": [0.15, 0.3]}}},
        "needle": {"haystack": "tiny", "tasks": {"single": {"lengths": [128, 256], "depths": [0, 100]}}},
    },
    "methods": [
        {"selector": "full_prefill"},
        {"selector": "full_reuse"},
        {"selector": "a3", "label": HOSTILE},
        {"selector": "epic", "options_by_model": {"tiny-qwen": {"tokens_per_chunk": 8}}},
    ],
}


PROMPTS = 12
PREFIX, CHUNKS, QUESTION = (1, 40), ((50, 51, 52), (60, 61, 62, 63)), (70, 71)  # token ids of every prompt
DOCUMENT = range(2, 9)  # positions of its document
EVIDENCE = (1,)  # among the document's tokens
RECOMPUTED = {"full_prefill": list(range(11)), "full_reuse": [9, 10], HOSTILE: [3, 6, 9, 10], "epic": [2, 5, 9, 10]}


def rows_of(seed: int, needle: bool) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        [
            {"prompt": f"p{n}", "method": method, "ratio": ratio, "score": rng.random(), "metric_f1": rng.random()}
            | {"kl_first": rng.random(), "kl": (method != "full_prefill") * rng.random(), "agreement_first": 1.0}
            | {"agreement": rng.random(), "nll": rng.random()}
            | {"ttft": 0.1 + rng.random(), "load": 0.02, "select": 0.01, "tpot": 0.1}
            | {"share": ratio / 2 if ratio < 1 else 1.0}
            | {"stored_bytes": 8e3, "cache_tokens": 10, "cache_bytes": 100}
            | {"prediction": f"{HOSTILE} {method} {n}", "answers": [HOSTILE], "recomputed": RECOMPUTED[method]}
            | ({"length": 128 * (1 + n // 2 % 2), "depth": 100 * (n % 2)} if needle else {})
            for n in range(PROMPTS)
            for method, ratio in METHODS
        ]
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Results of two models, with markup in a label, a question and an answer."""
    root = tmp_path_factory.mktemp("project")
    (root / "params").mkdir()
    (root / "params/p.yaml").write_text(yaml.safe_dump(PROFILE))
    for seed, model in enumerate(PROFILE["models"]):
        experiment = Experiment.load("p", model=model, root=root)
        outputs = experiment.outputs
        for benchmark, task in experiment.tasks:
            rows = rows_of(seed, benchmark == "needle")
            source = {"device": "<b>CPU</b>", "threads": 1, "dtype": "float32", "commit": "0123abc"}
            items = [
                Item(f"p{n}", Prompt(PREFIX, CHUNKS, QUESTION), f"{HOSTILE} {n}", (HOSTILE,), (), {}, EVIDENCE)
                for n in range(PROMPTS)
            ]
            write_items(outputs.prompts(benchmark, task), items, [])
            depends = depends_on(experiment, benchmark, task, "weights", "torch.float32")
            rows.attrs["identity"] = identity(depends)
            write_rows(outputs.rows(benchmark, task), rows)
            summary = {"summary": summarise(rows).to_dict("records"), "provenance": source}
            summary |= {"identity": identity(depends), "depends": depends}
            write_json(outputs.summary(benchmark, task), summary, checked=True)
            looked_at = {"benchmark": benchmark, "task": task, "identity": identity(depends)}
        chunking = [{"benchmark": "longbench", "task": "2wikimqa", "prompts": 4}]
        write_json(outputs.chunking, chunking, checked=True)
        precomputed = {"segments": 3, "shared": 1, "written": 3, "bytes": 2_000_000, "seconds": 1.5}
        write_json(outputs.precompute, precomputed, checked=True)
        view = looked_at | {"prompt": "p0", "question": HOSTILE, "answers": [HOSTILE]}
        view |= {"ratio": 0.15, "document": 6, "chunks": [0, 3], "evidence": [1], "selected": {"epic": [0, 3]}}
        write_json(outputs.tokens, view | {"attention": [[1.0] * 6, [0.5] * 6]}, checked=True)
    write_report("p", root)
    return root


def visible(page: Path) -> str:
    """A page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.S)


def check_links(page: Path) -> list[str]:
    """Check that every link of a page leads somewhere; returns the linked files."""
    text = visible(page)
    targets = [unescape(target) for target in re.findall(r'(?:href|src)="([^"]*)"', text)]
    ids = [unescape(name) for name in re.findall(r'id="([^"]*)"', text)]
    assert len(set(ids)) == len(ids)
    assert {unquote(target[1:]) for target in targets if target.startswith("#")} <= set(ids)
    files = [unquote(target) for target in targets if not target.startswith("#")]
    assert not [file for file in files if not (page.parent / file).exists()]
    return files


def test_every_link_leads_somewhere(root):
    write_index(root)
    files = check_links(root / "outputs/p/report.html")
    for model in PROFILE["models"]:
        drawn = ("longbench", "needle", "longbench-ttft", "longbench-frontier", "longbench-recovered")
        for kind in (*drawn, "needle-recovered", "recomputed", "attention"):
            assert {f"report/{model}-{kind}.png", f"report/{model}-{kind}.pdf"} <= set(files)
        tables = ("needle-scores", "needle-single", "longbench-2wikimqa-areas", "needle-times")
        for kind in (*tables, "needle-single-fidelity"):
            assert {f"report/{model}-{kind}.csv", f"report/{model}-{kind}.tex"} <= set(files)
        assert f"{model}/needle/single.json" in files
    assert check_links(root / "outputs/index.html") == ["p/report.html"]


def test_prompts_and_names_are_shown_as_text(root):
    for page in (root / "outputs/p/report.html", write_index(root)):
        text = page.read_text()
        assert "<script>alert" not in text
        assert "<b>CPU" not in text
        assert HOSTILE in unescape(text) or page.name == "index.html"


def test_the_page_begins_with_its_conclusion(root):
    page = (root / "outputs/p/report.html").read_text()
    first = page[page.index('<h2 id="conclusion">') : page.index('<h2 id="overview">')]
    for model in PROFILE["models"]:
        assert f"<h3>{model}</h3>" in first
    assert first.count("comes closest to full prefill") == 4, "two models with two benchmarks"
    assert page.index('<h2 id="conclusion">') < page.index("<table")


def test_times_that_say_nothing_are_left_out(root, tmp_path):
    """Where the profile says so; the note at the top is the place to say why."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "params/p.yaml"
    parameters = yaml.safe_load(file.read_text())
    timed = (root / "outputs/p/report.html").read_text()
    assert "TTFT" in timed
    file.write_text(yaml.safe_dump(parameters | {"timed": False, "note": "Two evaluations shared a <GPU>."}))
    page = write_report("p", tmp_path).read_text()
    assert "Two evaluations shared a &lt;GPU&gt;." in page
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "TTFT" not in re.sub(r"<[^>]*>", "", shown)
    assert "speed-up" not in shown
    for chart in re.findall(r'class="specification">(.*?)</script>', page, flags=re.DOTALL):
        assert "ttft" not in chart
    check_links(tmp_path / "outputs/p/report.html")


def test_the_best_values_are_bold(root):
    """Among methods that recompute a part; equal as they are shown."""
    experiment = Experiment.load("p", model="tiny-llama", root=root)
    means = experiment.rows("longbench", "2wikimqa").groupby(["method", "ratio"])["score"].mean()
    page = (root / "outputs/p/report.html").read_text()
    text = page[page.index("Scores of 2wikimqa, with intervals") :]
    lines = re.findall(r"<tr><td>(.*?)</td><td>(\d+)%</td><td>.*?</td><td( class=\"best\")?>([\d.]+)</td>", text)
    partial = means[means.index.get_level_values("ratio") < 1]
    best = f"{partial.max():.2f}"
    for method, ratio, bold, score in lines[: len(means)]:
        assert f"{means[unescape(method), int(ratio) / 100]:.2f}" == score
        assert bool(bold) == (score == best and ratio != "100")


def test_five_examples_of_a_task_show_answers_and_recomputed_tokens(root):
    tokenizer = load_tokenizer("tiny-llama")
    experiment = Experiment.load("p", model="tiny-llama", root=root)
    rows = experiment.rows("needle", "single")
    found = examples(experiment, "needle", "single", rows, tokenizer)
    assert len(found) == 5
    assert found[0]["id"] == "p0"
    for example in found:
        assert (example["question"], example["expected"]) == (f"{HOSTILE} {example['id'][1:]}", HOSTILE)
        assert [answer.method for answer in example["answers"]] == [
            "full_prefill",
            "full_reuse",
            f"{HOSTILE} 15% (7.5%)",
            "epic 15% (7.5%)",
        ]
        mine = rows[(rows["prompt"] == example["id"]) & (rows["ratio"].isin([0, 0.15, 1]))]
        assert [answer.prediction for answer in example["answers"]] == mine["prediction"].tolist()
        assert [answer.partial for answer in example["answers"]] == [False, False, True, True]
        for chunk, ids in zip(example["chunks"], CHUNKS, strict=True):
            assert "".join(piece.text for piece in chunk.pieces) == tokenizer.decode(ids)
        marked = {
            number: "".join(p.text for chunk in example["chunks"] for p in chunk.pieces if number in p.methods)
            for number in (2, 3)
        }
        document = [token for chunk in CHUNKS for token in chunk]
        for number, method in ((2, HOSTILE), (3, "epic")):
            ids = [document[position - 2] for position in RECOMPUTED[method] if position in DOCUMENT]
            assert marked[number].replace(" ", "") == "".join(tokenizer.decode([token]) for token in ids).replace(
                " ", ""
            )


def test_long_documents_show_the_chunks_with_evidence_and_recomputed_tokens(root, monkeypatch):
    monkeypatch.setattr("ragkv.report.examples.LONGEST", 4)
    experiment = Experiment.load("p", model="tiny-llama", root=root)
    rows = experiment.rows("needle", "single")
    example = examples(experiment, "needle", "single", rows, load_tokenizer("tiny-llama"))[0]
    assert [chunk.number for chunk in example["chunks"]] == [1], "the evidence is in the first chunk"
    assert example["left_out"] == 1


def test_without_its_tokenizer_a_model_has_no_text_and_the_page_says_why(root, monkeypatch):
    def fail(experiment):
        raise OSError("no such tokenizer")

    monkeypatch.setattr(Experiment, "load_tokenizer", fail)
    experiment = Experiment.load("p", model="tiny-llama", root=root)
    tokenizer, problem = tokenizer_or_problem(experiment)
    assert problem.endswith("the tokenizer could not be loaded: no such tokenizer")
    found = examples(experiment, "needle", "single", experiment.rows("needle", "single"), tokenizer)
    assert [example["chunks"] for example in found] == [[]] * 5


def test_tables_hold_the_results(root):
    experiment = Experiment.load("p", model="tiny-qwen", root=root)
    rows = experiment.rows("longbench", "2wikimqa")
    written = pd.read_csv(experiment.outputs.report_folder / "tiny-qwen-longbench-2wikimqa.csv").set_index(
        ["method", "ratio"]
    )
    means = rows.groupby(["method", "ratio"])["score"].mean()
    assert written["score"].to_dict() == pytest.approx(means.round(4).to_dict())
    page = experiment.outputs.report.read_text()
    assert re.search(rf"<td[^>]*>{means['epic', 0.3]:.2f}</td>", page)


def test_fidelity_is_on_the_page_and_with_all_digits_in_the_file(root):
    experiment = Experiment.load("p", model="tiny-qwen", root=root)
    table = fidelity_by_method(experiment.rows("needle", "single")).set_index(["method", "ratio"])
    written = pd.read_csv(experiment.outputs.report_folder / "tiny-qwen-needle-single-fidelity.csv")
    found = written.set_index(["method", "ratio"]).rename(columns={"recomputed": "share"})
    pd.testing.assert_frame_equal(found, table.round(4), check_exact=False, atol=1e-4)
    line = table.loc["epic", 0.3]
    page = experiment.outputs.report.read_text()
    latex = (experiment.outputs.report_folder / "tiny-qwen-needle-single-fidelity.tex").read_text()
    kl = [f"{line[name]:.3f}" for name in ("kl", "kl_low", "kl_high")]
    assert re.search(r"<td[^>]*>{}\n\({} … {}\)</td>".format(*map(re.escape, kl)), page)
    assert "{} ({} … {})".format(*kl) in latex


def test_the_overview_has_the_divergence_over_all_prompts_of_a_benchmark(root):
    overview = pd.read_csv(root / "outputs/p/report/overview-fidelity.csv").set_index(["method", "ratio"])
    for model in PROFILE["models"]:
        rows = Experiment.load("p", model=model, root=root).rows("longbench", "2wikimqa")
        means = rows.groupby(["method", "ratio"])["kl"].mean()
        share = 1 - means["epic", 0.15] / means["full_reuse", 0.0]
        assert overview.loc[("epic", 0.15), f"{model}, longbench, KL"] == pytest.approx(means["epic", 0.15], abs=1e-4)
        assert overview.loc[("epic", 0.15), f"{model}, longbench, recovered"] == pytest.approx(share, abs=1e-4)


def test_every_table_says_what_was_recomputed(root):
    """Methods recompute half of what they may here."""
    files = sorted((root / "outputs/p/report").glob("*.csv"))
    by_ratio = [pd.read_csv(path) for path in files if "areas" not in path.name]
    assert len(by_ratio) == 2 + 2 * (4 + 5), "the scores of all tasks are left out where there is one"
    for table in by_ratio:
        partial = table[table["ratio"] < 1]
        assert partial["recomputed"].tolist() == pytest.approx((partial["ratio"] / 2).tolist(), abs=1e-4)
    assert "<td>7.5%</td>" in (root / "outputs/p/report.html").read_text()


def test_options_of_one_model_are_said_to_be_set_by_hand(root):
    page = (root / "outputs/p/report.html").read_text()
    qwen = page.index('<h2 id="tiny-qwen">')
    conclusion = page[: page.index('<h2 id="overview">')]
    assert "Set by hand for <code>tiny-qwen</code>: epic (tokens_per_chunk 8)." in conclusion
    assert "Set by hand for this model: epic (tokens_per_chunk 8)." in page[qwen:]
    assert "Set by hand for this model" not in page[page.index('<h2 id="tiny-llama">') : qwen]
    for model, said in (("tiny-llama", False), ("tiny-qwen", True)):
        latex = (root / f"outputs/p/report/{model}-longbench-times.tex").read_text()
        assert ("set by hand epic (tokens_per_chunk 8)" in latex.splitlines()[0]) == said


def test_without_full_prefill_there_is_no_fidelity(tmp_path):
    """Nor an error: there is nothing to compare with."""
    write_profile(tmp_path, methods=[{"selector": "full_reuse"}, {"selector": "a3"}])
    page = run_profile("p", root=tmp_path, say=lambda line: None)
    assert "KL" not in visible(page)
    write_profile(tmp_path, methods=[{"selector": "full_prefill"}, {"selector": "a3"}])
    text = run_profile("p", root=tmp_path, say=lambda line: None).read_text()
    assert "<th>KL, answer</th>" in text and "<th>KL gap recovered</th>" not in text
    assert "The gap needs results of <code>full_reuse</code>" in text


def test_latex_uses_booktabs_and_names_its_source(root):
    text = (root / "outputs/p/report/tiny-llama-longbench-metrics.tex").read_text()
    source, begin, *lines = text.splitlines()
    assert source.startswith("% profile p results tiny-llama/longbench/2wikimqa.parquet device <b>CPU</b>")
    assert begin.startswith(r"\begin{tabular}")
    assert [line for line in lines if line.endswith("rule")] == [r"\toprule", r"\midrule", r"\bottomrule"]
    body = "\n".join(lines)
    assert r"\& 50\% of\_it" in body
    assert not re.search(r"(?<!\\)[%_#$]", body)  # no unescaped special characters of TeX
    assert all(line.count(" & ") == 3 for line in lines if line.endswith(r"\\"))


def cells(latex):
    """The cells of a table's rows, without the headings."""
    rows = latex.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    return [row.removesuffix(r" \\").split(" & ") for row in rows]


@pytest.mark.parametrize("turned", [False, True])
def test_latex_and_the_page_mark_the_same_values(tmp_path, turned):
    index = pd.MultiIndex.from_tuples([("a3", 0.125), ("a3", 0.15), ("50%", 0.15)], names=["method", "ratio"])
    table = pd.DataFrame({"vt_1": [1.0, 0.25, 1.0], "kl": ["0.1\n(0.0 … 0.2)", "9 & 9", "1"]}, index=index)
    best = pd.DataFrame({"vt_1": [True, False, True], "kl": [False, True, False]}, index=index)
    written = write_table(table, tmp_path / "t", {}, best=best, turned=turned)
    found = cells((tmp_path / written.tex).read_text())
    by_row = [[r"\textbf{1.00}", "0.1 (0.0 … 0.2)"], ["0.25", r"\textbf{9 \& 9}"], [r"\textbf{1.00}", "1"]]
    methods = [["a3", r"12.5\%"], ["a3", r"15\%"], [r"50\%", r"15\%"]]
    if turned:
        assert found == [["vt\\_1", *(row[0] for row in by_row)], ["kl", *(row[1] for row in by_row)]]
    else:
        assert found == [[*names, *row] for names, row in zip(methods, by_row, strict=True)]
    assert re.findall(r'<td class="best">(.*?)</td>', written.html) == (
        ["1.00", "1.00", "9 &amp; 9"] if turned else ["1.00", "9 &amp; 9", "1.00"]
    )


def test_a_table_with_axes_exchanged_keeps_its_csv(tmp_path):
    index = pd.MultiIndex.from_tuples([("a3", 0.15), ("full_reuse", 0.0)], names=["method", "ratio"])
    table = pd.DataFrame({"vt_1": [1.0, 0.25], "vt_2": [0.5, 0.0]}, index=index)
    plain, turned = (write_table(table, tmp_path / name, {}, turned=name == "t") for name in ("p", "t"))
    assert (tmp_path / plain.csv).read_text() == (tmp_path / turned.csv).read_text()
    assert re.findall(r"<th>(.*?)</th>", turned.html) == ["", "a3 15%", "full_reuse", "vt_1", "vt_2"]


def test_every_number_has_its_command(root):
    text = unescape((root / "outputs/p/report.html").read_text())
    commands = re.findall(r"<pre>(snakemake .*?)</pre>", text)
    files = [re.search(r'"\$PWD/(.*)"', command)[1] for command in commands]
    assert len(files) == 6
    assert all((root / path).exists() for path in files)
    assert all("--config profile=p " in command for command in commands)


def test_the_same_results_give_the_same_report(root):
    def files():
        report = root / "outputs/p/report"
        return {path.name: path.read_bytes() for path in [*report.iterdir(), root / "outputs/p/report.html"]}

    before = files()
    write_report("p", root)
    assert files() == before


def test_the_index_has_every_report_and_its_best_method(root):
    """Recorded reports, which have no rows, are included; a profile without a report is not."""
    recorded = root / "outputs/reference/old"
    (root / "outputs/unfinished").mkdir(exist_ok=True)
    try:
        for path in (root / "outputs/p/tiny-llama").rglob("*.json"):
            copy = recorded / path.relative_to(root / "outputs/p")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
        (recorded / "report.html").write_text("a report")
        page = write_index(root)
        assert check_links(page) == ["p/report.html", "reference/old/report.html"]
        ours, old = tables(page)
    finally:
        (recorded / "report.html").unlink()
    assert list(ours.index) == ["tiny-llama", "tiny-qwen"]
    assert list(old.index) == ["tiny-llama"]
    for model, line in ours.iterrows():
        experiment = Experiment.load("p", model=model, root=root)
        rows = [experiment.rows(*task).groupby(["method", "ratio"])["score"].mean() for task in experiment.tasks]
        means = sum(rows) / len(rows)
        full, low, high = map(float, re.findall(r"[\d.]+", line["full_prefill"]))
        assert full == pytest.approx(means["full_prefill", 1.0], abs=0.006)
        assert low < full < high
        best = max(mean for (_, ratio), mean in means.items() if 0 < ratio < 1)
        assert float(line["best"].split()[0]) == pytest.approx(best, abs=0.006)
        assert re.search(r" (15% \(7\.5%\)|30% \(15%\))(\nand \d overlapping)?$", line["by"])


def tables(page: Path) -> list[pd.DataFrame]:
    """The tables of a page, with cells as text, indexed by the first column."""
    parsed = []
    for table in re.findall(r"<table.*?</table>", page.read_text(), re.S):
        head, *body = [
            [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
            for row in re.findall(r"<tr.*?</tr>", table, re.S)
        ]
        parsed.append(pd.DataFrame(body, columns=head).set_index(head[0]))
    return parsed


def test_without_results_the_error_names_the_notebook_to_run(root, tmp_path):
    (tmp_path / "params").mkdir()
    (tmp_path / "params/p.yaml").write_text(yaml.safe_dump(PROFILE))
    with pytest.raises(FileNotFoundError, match="run the notebook of the benchmark longbench"):
        write_report("p", tmp_path)
    assert "There are none yet" in write_index(tmp_path).read_text()


def test_the_index_shows_what_the_report_shows(root):
    """A model and a task that are no longer in the profile have summaries on disk, and are in neither."""
    folder = root / "outputs/p"
    for copy in ("an-old-model", "tiny-llama/longbench/old-task.json"):
        original = folder / ("tiny-llama" if copy == "an-old-model" else "tiny-llama/longbench/2wikimqa.json")
        (shutil.copytree if original.is_dir() else shutil.copy)(original, folder / copy)
    (table,) = tables(write_index(root))
    assert list(table.index) == ["tiny-llama", "tiny-qwen"]
    assert table["tasks"].tolist() == ["2", "2"]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", '=HYPERLINK("http://x","y")'])
def test_names_are_no_formulas_in_a_spreadsheet(tmp_path, name):
    index = pd.MultiIndex.from_tuples([(name, 0.15), ("a3", 0.3)], names=["method", "ratio"])
    table = pd.DataFrame({name: [1.0, -0.5], "95 %": ["-0.10 … 0.20", ""]}, index=index)
    written = write_table(table, tmp_path / "t", {})
    with (tmp_path / written.csv).open(newline="", encoding="utf-8") as file:
        head, first, _ = csv.reader(file)
    assert head == ["method", "ratio", f"'{name}", "95 %"]
    assert first == [f"'{name}", "0.1500", "1.0000", "-0.10 … 0.20"]
    assert name.strip() in unescape(written.html)


def test_the_source_of_a_table_cannot_leave_its_comment(tmp_path):
    index = pd.MultiIndex.from_tuples([("a3", 0.15)], names=["method", "ratio"])
    source = {"commit": "0123\n\\input{/etc/passwd}", "device": "GPU\r0"}
    written = write_table(pd.DataFrame({"score": [1.0]}, index=index), tmp_path / "t", source)
    lines = (tmp_path / written.tex).read_text().splitlines()
    assert lines[0] == r"% commit 0123 \input{/etc/passwd} device GPU 0"
    assert lines[1].startswith(r"\begin{tabular}")


@pytest.mark.parametrize("name", ["p", "qwen2.5-7b", "007", "1e3", "true", "nan", "it's", "a b", "$(touch pwned)"])
def test_the_command_of_a_number_reaches_snakemake_with_the_profiles_name(tmp_path, name):
    (tmp_path / "params").mkdir()
    (tmp_path / f"params/{name}.yaml").write_text(yaml.safe_dump(PROFILE))
    files = ModelFiles(Experiment.load(name, root=tmp_path))
    words = shlex.split(files.command(files.outputs.report))
    config = parse_config([words[words.index("--config") + 1]])
    assert config == {"profile": name}


@pytest.mark.parametrize(
    "name", ["it's; touch pwned", "$(touch pwned)", '")); import os; os.abort(); (("', "{{ 1 }} <b>"]
)
def test_the_pages_own_commands_hold_the_profiles_name_as_text(root, tmp_path, name):
    """Copied from the page to a shell, they run nothing else."""
    shutil.copytree(root / "params", tmp_path / "params")
    shutil.copy(root / "params/p.yaml", tmp_path / f"params/{name}.yaml")
    shutil.copytree(root / "outputs/p", tmp_path / "outputs" / name, ignore=shutil.ignore_patterns("store", "report"))
    text = unescape(write_report(name, tmp_path).read_text())
    (program,) = re.findall(r"<pre>(python -c .*?)</pre>", text)
    python, option, code = shlex.split(program)
    assert (python, option) == ("python", "-c")
    call = ast.parse(code).body[1].value
    assert [ast.literal_eval(argument) for argument in call.args] == [name, "."]
    (assignment,) = re.findall(r"<code>make reproduce (.*?)</code> runs", text)
    assert shlex.split(assignment) == [f"PROFILE={name}".replace("$", "$$")]  # make reads $$ as $


@pytest.mark.parametrize("label", ["$x_{$", "$$", "\\$a$b_{", "%", "\\frac{", "^{", "<b>", "=1", "模型"])
def test_labels_are_drawn_as_they_are(label):
    rows = pd.concat([rows_of(0, needle=False), rows_of(1, needle=True)]).replace(HOSTILE, label)
    for part in (rows[rows["depth"].isna()].drop(columns=["length", "depth"]), rows.dropna(subset=["depth"])):
        drawn = [
            figures.score_figure(part, label),
            figures.ttft_by_method(part, label),
            figures.frontier(costs(part), label),
        ]
        drawn.append(figures.recovered_over_share(fidelity_by_method(part), label))
        for figure in [*drawn, figures.score_by_method(summarise(part), label)]:
            figure.savefig(BytesIO(), dpi=20)
            shown = [text.get_text() for text in figure.findobj(Text) if not text.get_parse_math() or "$" not in label]
            assert any(label in text for text in shown)
