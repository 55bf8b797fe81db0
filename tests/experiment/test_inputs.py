"""What a profile names: paths are relative to its project, what is missing is said at once, changes are noticed."""

import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from profiles import PROFILE, write_profile

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.inputs import find_model, model_state, state_of
from ragkv.models.load import model_source
from ragkv.run import run_profile

MODEL = Path(model_source("tiny-llama"))


def profile_with(root, benchmarks):
    return write_profile(root, benchmarks=benchmarks)


def test_a_models_path_is_relative_to_the_project(tmp_path, monkeypatch):
    elsewhere = tmp_path / "notebooks"
    (elsewhere / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    shutil.copytree(MODEL, tmp_path / "models/mine")
    shutil.copytree(MODEL, tmp_path / "one-word")
    for name in ("models/mine", "./models/mine", "models/mine/", "one-word"):
        found = find_model(name, tmp_path)
        assert Path(found).is_absolute()
        assert (Path(found) / "config.json").samefile(tmp_path / name / "config.json")
    assert find_model(str(tmp_path / "one-word"), Path("/nowhere")) == str(tmp_path / "one-word")
    assert find_model("tiny-llama", tmp_path) == "tiny-llama"
    assert find_model("owner/name", tmp_path) == "owner/name"


@pytest.mark.parametrize(
    "name",
    ["path/to/your/model", "/no/such/model", "./model", "../model", "~/no such model", "no-such-model", "a/", ""],
)
def test_a_model_that_can_be_nowhere_is_one_line(tmp_path, name):
    with pytest.raises(ValueError) as error:
        find_model(name, tmp_path)
    assert "could not be loaded: it is none of the embedded ones (tiny-llama" in str(error.value)
    assert "\n" not in str(error.value)


def test_everything_that_is_missing_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    benchmarks = {
        "longbench": {"source": "data/lb", "prompts_file": "p.json", "tasks": {"hotpotqa": {}}},
        "needle": {"haystack": "essays of mine", "tasks": {"a": {}}},
        "ruler": {"squad": "squad.json", "tasks": {"vt": {}}},
    }
    methods = [{"selector": "probe", "calibrated": True}]
    experiment = write_profile(tmp_path, models=["owner/no-such-model"], benchmarks=benchmarks, methods=methods)
    monkeypatch.setattr(Experiment, "load_model", None)
    with pytest.raises(ValueError) as error:
        run_profile("p", root=tmp_path)
    message = str(error.value)
    assert "\n" not in message
    for text in (
        "model 'owner/no-such-model' could not be loaded",
        f"longbench: there is no file or folder {tmp_path}/data/lb",
        f"longbench: there is no file or folder {tmp_path}/p.json",
        f"needle: there is no file or folder {tmp_path}/essays of mine",
        f"ruler: there is no file or folder {tmp_path}/squad.json",
        f"there is no calibration {tmp_path}/params/calibration/no-such-model.json",
    ):
        assert text in message
    assert len(experiment.missing()) == 6


@pytest.mark.parametrize(
    "benchmark",
    [
        {"ruler": {"source": "tiny", "tasks": {"vt_1": {}}}},
        {"ruler": {"tasks": {"vt": {}}}},
        {"needle": {"haystack": "tiny", "tasks": {"a": {}}}},
        {"needle": {"tasks": {"a": {}}}},
        {"longbench": {"source": "tiny", "tasks": {"2wikimqa": {}}}},
        {"longbench": {"source": "hf:owner/name", "tasks": {"2wikimqa": {}}}},
    ],
)
def test_sources_that_are_no_files_are_not_missed(tmp_path, benchmark):
    assert profile_with(tmp_path, benchmark).missing() == []


def files_of(root: Path, benchmark: dict) -> Experiment:
    for file in ("data/lb/hotpotqa.jsonl", "p.json", "hay/a.txt", "hay/deeper/b.txt", "squad.json", "4096/vt.jsonl"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("{}")
    return profile_with(root, benchmark)


@pytest.mark.parametrize(
    ("benchmark", "file"),
    [
        ({"longbench": {"source": "data/lb", "tasks": {"hotpotqa": {}}}}, "data/lb/hotpotqa.jsonl"),
        ({"longbench": {"source": "tiny", "prompts_file": "p.json", "tasks": {"2wikimqa": {}}}}, "p.json"),
        ({"needle": {"haystack": "hay", "tasks": {"a": {}}}}, "hay/a.txt"),
        ({"ruler": {"haystack": "hay", "tasks": {"vt": {}}}}, "hay/a.txt"),
        ({"ruler": {"squad": "squad.json", "tasks": {"qa_1": {}}}}, "squad.json"),
        ({"ruler": {"source": ".", "tasks": {"vt": {}}}}, "4096/vt.jsonl"),
    ],
)
def test_files_of_benchmarks_that_change_in_place_are_noticed(tmp_path, benchmark, file):
    experiment = files_of(tmp_path, benchmark)
    states = [experiment.benchmark_state, experiment.benchmark_state]
    assert states[0] == states[1]
    path = tmp_path / file
    about = path.stat()
    path.write_text("[]")  # as long as before
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    states.append(experiment.benchmark_state)
    path.with_name("new.txt").write_text("more")
    states.append(experiment.benchmark_state)
    path.unlink()
    path.with_name("new.txt").unlink()
    states.append(experiment.benchmark_state)
    distinct = len(set(states))
    assert distinct == (4 if path.suffix != ".json" else 3)  # a file has no siblings


def test_large_files_are_compared_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ragkv.experiment.inputs.SMALL", 10)
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    before = state_of([path])
    monkeypatch.setattr(Path, "read_bytes", None)  # they are not read
    assert state_of([path]) == before
    about = path.stat()
    path.write_bytes(bytes(99) + b"1")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))  # as `cp -p` and archives do
    assert state_of([path]) != before


def test_a_model_behind_a_link_that_leads_elsewhere_is_another(tmp_path):
    """Two checkpoints whose weights have the same size and time."""
    for name in ("a", "b"):
        shutil.copytree(MODEL, tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= name == "b"
        weights.write_bytes(content)
        os.utime(weights, ns=(1, 1))
    states = []
    for name in ("a", "b"):
        (tmp_path / "mine").unlink(missing_ok=True)
        (tmp_path / "mine").symlink_to(name)
        states.append(model_state("mine", tmp_path))
    assert states[0] != states[1]


def test_an_adapter_depends_on_the_model_that_it_was_trained_on(tmp_path):
    shutil.copytree(MODEL, tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    config = {"base_model_name_or_path": str(tmp_path / "base"), "peft_type": "LORA"}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    experiment = write_profile(tmp_path, models=["adapter"])
    assert experiment.missing() == []
    before = experiment.model_state
    with (tmp_path / "base/model.safetensors").open("r+b") as file:
        file.write(b"1")
    assert experiment.model_state != before
    (tmp_path / "base/config.json").unlink()
    assert "base is not a model: the folder has no config.json" in experiment.missing()[0]


def test_files_in_folders_are_told_apart_however_they_lie_there(tmp_path):
    """Each of these changes is noticed; links are followed, once, and hidden files do not count."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "a").write_text("1")
    (folder / "b").write_text("2")
    states = [state_of([folder])]
    (folder / "b").unlink()
    (folder / "a").write_bytes(b"1\ndata/b\x002")  # the name and the content of the other file
    states.append(state_of([folder]))
    (elsewhere / "4096.jsonl").write_text("1")
    (folder / "linked").symlink_to(elsewhere)
    states.append(state_of([folder]))
    (elsewhere / "4096.jsonl").write_text("2")
    states.append(state_of([folder]))
    os.mkfifo(folder / "pipe")
    states.append(state_of([folder]))
    assert len(set(states)) == 5
    (elsewhere / "circle").symlink_to(folder)
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints/a").write_text("3")
    (folder / ".DS_Store").write_text("4")
    assert state_of([folder]) == states[-1]


def test_results_do_not_count_as_files_of_a_benchmark_whose_folder_is_the_project(tmp_path):
    experiment = files_of(tmp_path, {"ruler": {"source": ".", "tasks": {"vt": {}}}})
    before = experiment.benchmark_state
    (tmp_path / "outputs/p").mkdir(parents=True)
    (tmp_path / "outputs/p/report.html").write_text("new")
    assert experiment.benchmark_state == before
    (tmp_path / "4096/vt.jsonl").write_text("new")
    assert experiment.benchmark_state != before


@pytest.mark.parametrize("source", ["x" * 300, "a\0b", "../no such folder", "~"])
def test_a_source_that_can_be_no_path_is_missing(tmp_path, source):
    (line,) = profile_with(tmp_path, {"longbench": {"source": source, "tasks": {"2wikimqa": {}}}}).missing()
    assert line.startswith("longbench: there is no file or folder /")


def test_a_folder_or_file_that_is_no_model_is_said_before_anything_is_loaded(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_text("")
    for name, said in (
        ("empty", "the folder has no config.json"),
        ("weights.bin", "neither a folder nor a .gguf file"),
    ):
        (line,) = write_profile(tmp_path, models=[name]).missing()
        assert line.startswith(f"model '{name}' could not be loaded: {tmp_path / name} is not a model: ")
        assert said in line


def test_a_store_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    experiment = write_profile(tmp_path, store={"url": "~/kv", "cache": "~/copies", "cache_gigabytes": 1})
    assert str(experiment.store().url) == str(tmp_path / "home/kv")
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_local_models_files_that_change_in_place_are_noticed(tmp_path, file):
    shutil.copytree(MODEL, tmp_path / "mine")
    before = model_state("mine", tmp_path)
    (tmp_path / "mine/.cache").write_text("hidden")
    (tmp_path / "mine/checkpoint-5").mkdir()
    (tmp_path / "mine/checkpoint-5/model.safetensors").write_text("another")
    assert model_state("mine", tmp_path) == before
    path = tmp_path / "mine" / file
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]) if content else b"{}")
    assert model_state("mine", tmp_path) != before


def test_a_benchmark_of_ones_own_names_its_files_by_itself(tmp_path):
    """Text parameters that are the paths of something that exists."""
    (tmp_path / "own.py").write_text(
        "from ragkv.benchmarks import Benchmark, register\n\n\n@register('own_files')\n"
        "class Own(Benchmark):\n    words: str = 'plain'\n    text: str = ''\n    many: int = 3\n\n"
        "    def task(self, name): ...\n    def examples(self, name, tokenizer, root): ...\n"
        "    def sizes(self, name): return [(1, 100)]\n"
    )
    (tmp_path / "words.txt").write_text("a b c")
    texts = {"words": "words.txt", "text": "x" * 5000}
    experiment = write_profile(tmp_path, modules=["own.py"], benchmarks={"own_files": {"tasks": {"a": {}}, **texts}})
    assert experiment.profile.benchmark("own_files").files(tmp_path) == [tmp_path / "words.txt"]


def test_code_that_a_plug_in_imports_is_part_of_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "my_package_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "plug.py").write_text("import json\nimport numpy\nimport ragkv\nfrom .words import WORDS\n")
    (package / "words.py").write_text("from my_package_of_tests import deeper\nWORDS = deeper.WORDS\n")
    (package / "deeper.py").write_text("WORDS = ['a']\n")
    experiment = write_profile(tmp_path, modules=["my_package_of_tests.plug"])
    assert {path.name for path in experiment.module_files} == {"plug.py", "words.py", "deeper.py", "__init__.py"}
    before = experiment.modules_code()
    (package / "deeper.py").write_text("WORDS = ['b']\n")
    assert experiment.modules_code() != before


def test_what_functions_of_a_plug_in_import_is_part_of_it_before_and_after_they_ran(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lazy_words.py").write_text("WORDS = 1\nprint('this does not run')\n")
    (tmp_path / "plug.py").write_text(
        "def words():\n    import no_such_module\n    from lazy_words import WORDS\n    from . import broken\n"
    )
    experiment = write_profile(tmp_path, modules=["plug.py"])
    before = experiment.modules_code()
    assert {path.name for path in experiment.module_files} == {"plug.py", "lazy_words.py"}
    assert "lazy_words" not in sys.modules
    importlib.import_module("lazy_words")
    assert experiment.modules_code() == before
    del sys.modules["lazy_words"]
    (tmp_path / "lazy_words.py").write_text("WORDS = 2\n")
    assert experiment.modules_code() != before
    (tmp_path / "lazy_words.py").write_text("WORDS = (\n")  # being edited
    assert experiment.modules_code() != before


def test_a_plug_in_that_ends_the_program_is_an_error(tmp_path):
    """A script whose last line is `sys.exit(main())`: a run would end at once, with exit code 0."""
    (tmp_path / "plug.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ValueError, match=r"modules: plug\.py cannot be imported: SystemExit: 0"):
        write_profile(tmp_path, modules=["plug.py"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: [a]\nmodels: [b]\n", "'models' is given twice, again in line 3"),
        ("benchmarks: {ruler: {source: tiny, source: generated}}\n", "'source' is given twice"),
        ("models: [" * 5000, "nested too deeply"),
        ("- 1\n", "it must hold parameters by name"),
        ("a: &a [*a]\n", "there is no such parameter"),
        ("models: ]\n", "line 2, column 9"),
        ("models: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("extends: 7\n", "quote a name that is a number"),
        ("extends: ../p\n", "is not the name of a profile"),
        ("extends: [p]\n", "is not the name of a profile"),
        (b"models: [caf\xe9]\n", "this is not UTF-8 text"),
        ("# " + "x" * 2**20, "has at most 1,048,576 bytes"),
        ("models: [a/x, ./a/x]\n", "would share the results folder"),
        ('models: ["\\e[2J"]\n', "cannot be shown"),
        ('methods: [{selector: a3, label: "a\\nb"}]\n', "cannot be shown as a name"),
        ("methods: [{selector: a3, label: _hidden}]\n", "do not begin with '_'"),
        ("methods: [{selector: a3, ratios: []}]\n", "methods.0.ratios: List should have at least 1 item"),
        ('methods: [{selector: a3, options: {per_head: "no"}}]\n', "per_head is 'no', expected bool"),
        ("methods: [{selector: a3, options: {layer: &a [*a, *a]}}]\n", "layer is a list, expected int"),
        ("methods: [{selector: a3, eviction: {name: snapkv, capacity_ratio: 1h}}]\n", "expected float or nothing"),
        (f"methods: [{{selector: a3, label: {'x' * 101}}}]\n", "up to 100 characters"),
    ],
)
def test_a_profile_that_cannot_be_right_is_one_line_that_can_be_shown(tmp_path, text, said):
    write_profile(tmp_path)
    base = {} if isinstance(text, bytes) or "extends" in text else {"extends": "p"}
    start = yaml.safe_dump(base) if base and not text.startswith(("-", "#")) else ""
    content = text if isinstance(text, bytes) else (start + text).encode()
    (tmp_path / "params/q.yaml").write_bytes(content)
    with pytest.raises(ValueError) as error:
        Experiment.load("q", root=tmp_path)
    assert said in str(error.value)
    assert str(error.value).isprintable()


def test_profiles_may_be_called_by_numbers(tmp_path):
    (tmp_path / "params").mkdir()
    for name in ("007", "1e3", "true", "null", "it's"):
        (tmp_path / f"params/{name}.yaml").write_text(yaml.safe_dump(PROFILE))
        assert Experiment.load(name, root=tmp_path).outputs.report == tmp_path / f"outputs/{name}/report.html"
    (tmp_path / "params/q.yaml").write_text("extends: '007'\n")
    assert Experiment.load("q", root=tmp_path).profile == Experiment.load("007", root=tmp_path).profile


@pytest.mark.parametrize("name", ["", "..", "a/b", "../params/p"])
def test_a_name_that_is_a_path_is_no_profile(tmp_path, name):
    write_profile(tmp_path)
    with pytest.raises(ValueError, match=r"no profile|is not the name of a profile"):
        Experiment.load(name, root=tmp_path)
