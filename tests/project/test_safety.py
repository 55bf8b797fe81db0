"""Nothing that comes from elsewhere runs code, writes outside its folder, or becomes markup."""

import ast
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from helpers import make_model
from matplotlib.figure import Figure
from typer.testing import CliRunner

from ragkv import load_model
from ragkv.cli import app
from ragkv.figures import save
from ragkv.results.files import write_json
from ragkv.results.outputs import Outputs
from ragkv.results.partial import append_rows
from ragkv.terminal import printable

PACKAGE = Path(str(files("ragkv")))
SOURCES = sorted(PACKAGE.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "pd.read_pickle",
    "yaml.load",
    "yaml.unsafe_load",
}
LOADERS = ("exec_module", "run_path", "run_module", "load_module")
MODULES_OF_A_PROFILE = PACKAGE / "experiment" / "modules.py"  # the one place that runs code on purpose


def unsafe(source: str) -> list[str]:
    """What could run code that lies in a file: imports, calls, and options of calls."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            found += [name] * (name in UNSAFE_CALLS or name.endswith(LOADERS))
            found += [option for option in ("allow_pickle", "trust_remote_code") if given.get(option) == "True"]
            # safetensors and GGUF files hold numbers and text alone
            models = name.endswith("from_pretrained") and "Model" in name and "gguf_file" not in given
            found += [f"{name} without use_safetensors"] * (models and given.get("use_safetensors") != "True")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_code_is_read_from_files(path):
    allowed = ["spec.loader.exec_module"] if path == MODULES_OF_A_PROFILE else []
    assert unsafe(path.read_text()) == allowed


def test_what_is_unsafe_is_seen():
    for source in (
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "spec.loader.exec_module(module)",
        "AutoModelForCausalLM.from_pretrained(name)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
    ):
        assert len(unsafe(source)) == 1, source


def test_weights_that_are_pickled_are_refused(tmp_path):
    """A folder whose weights would run code when unpickled."""
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    model, folder = make_model("llama", num_hidden_layers=1), tmp_path / "model"
    load_model("tiny-llama", device="cpu")[1].save_pretrained(folder)
    model.config.save_pretrained(folder)
    torch.save({"model.embed_tokens.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"could not be loaded.*safetensors"):
        load_model(folder, device="cpu")
    assert not marker.exists()


def test_a_models_own_code_runs_only_if_asked_for(tmp_path):
    marker, folder = tmp_path / "ran", tmp_path / "model"
    make_model("llama", num_hidden_layers=1).save_pretrained(folder)
    load_model("tiny-llama", device="cpu")[1].save_pretrained(folder)
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    with pytest.raises(ValueError):
        load_model(folder, device="cpu")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../../outside", "/etc", "a/b", "a\\b", "a\0"])
def test_results_stay_in_their_folder(tmp_path, name):
    whole = Outputs(tmp_path, "p", "m")
    for asked in (
        lambda: whole.rows(name, "task"),
        lambda: Outputs(tmp_path, name, "m").store,
    ):
        with pytest.raises(ValueError, match="cannot name results"):
            asked()
    if name not in ("", ".", ".."):  # with an ending these are names
        for path in (whole.rows, whole.summary, whole.prompts, lambda b, t: whole.partial(b, t, "x", "y")):
            with pytest.raises(ValueError, match="cannot name results"):
                path("ruler", name)


@pytest.mark.parametrize("model", ["..", "/", "hub/.."])
def test_a_models_results_stay_in_their_folder(tmp_path, model):
    with pytest.raises(ValueError, match="cannot name results"):
        _ = Outputs(tmp_path, "p", model).folder


def test_results_are_not_written_through_links(tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "results.json"
    outside.write_text("mine")
    path.symlink_to(outside)
    path.with_name("results.json.partial").symlink_to(outside)
    write_json(path, {"a": 1})
    assert outside.read_text() == "mine"
    assert json.loads(path.read_text()) == {"a": 1}
    rows = tmp_path / "rows.jsonl"
    rows.symlink_to(outside)
    with pytest.raises(OSError, match=r"cannot write .*rows\.jsonl"):
        append_rows(rows, [{"a": 1}])
    for name in ("figure.png", "figure.pdf"):
        (tmp_path / name).symlink_to(outside)
    save(Figure(), tmp_path / "figure.png", {})
    assert outside.read_text() == "mine"


def test_the_report_escapes_by_default():
    """Every template that the package renders; what pages show of markup: `test_report`, `test_highlight`."""
    made = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    environments = [ast.unparse(call) for call in made if ast.unparse(call.func).endswith("Environment")]
    assert environments
    assert all("autoescape=True" in call for call in environments)
    assert not [c for c in map(ast.unparse, made) if ".to_html(" in c and "escape=False" in c]


def test_errors_on_the_terminal_have_no_escape_sequences(tmp_path):
    """A file's name may hold some that change what the terminal shows, or type for its user."""
    name = "\x1b]0;title\x07\x1b[2J\u202egnp"
    (tmp_path / "params").mkdir()
    (tmp_path / f"params/{name}.yaml").write_text("models: 3")
    for words in (["run", "q"], ["run", name], ["plan", name]):
        shown = CliRunner().invoke(app, [*words, "--root", str(tmp_path)])
        assert shown.exit_code == 2
        assert shown.output.replace("\n", "").isprintable()
        assert "title" in shown.output


@pytest.mark.parametrize("text", ["plain", "two\nlines", "\x1b[31mred", "\r\x08", "\ud83d", "Größe 模型"])
def test_what_is_printed_can_be_shown(text):
    shown = printable(text, keep="\n")
    assert shown.replace("\n", "").isprintable()
    assert (shown == text) == text.replace("\n", "").isprintable()
