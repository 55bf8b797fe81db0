"""The command line: every command is under `ragkv`, and nothing heavy is imported before it is needed."""

import subprocess
import sys
from inspect import cleandoc

import pytest
from typer.testing import CliRunner

import ragkv
from ragkv.cli import COMMANDS, app, load

HEAVY = ("torch", "transformers", "pandas", "numpy", "matplotlib", "pydantic")


def loaded_after(code):
    """Which of the heavy packages a new Python has loaded after running this code."""
    check = f"{code}\nimport sys\nprint('loaded:', *[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("loaded:")[2].split()


def called(*words):
    return (
        f"from ragkv.cli import app\ntry:\n    app({list(words)!r})\nexcept SystemExit as end:\n    assert not end.code"
    )


@pytest.mark.parametrize("code", ["import ragkv", called("--help"), called("--version"), "import ragkv.options"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    assert loaded_after(code) == []


def test_a_public_name_imports_what_it_needs():
    assert "torch" in loaded_after("import ragkv\nragkv.KVStore")


def invoke(*words):
    return CliRunner().invoke(app, list(words))


def test_the_version_is_told():
    assert invoke("--version").output == f"ragkv {ragkv.__version__}\n"


def test_help_lists_every_command():
    output = invoke("--help").output
    for name in ("init", "run", "answer", "bench", "calibrate", "plan", "doctor", "store", "tiny"):
        assert f" {name} " in output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_commands_help_is_that_of_the_table(name):
    command = load(name)
    assert command.name == name
    assert cleandoc(command.help).splitlines()[0] == COMMANDS[name].help
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "--install-completion" not in result.output


def test_errors_are_one_line(tmp_path):
    result = invoke("run", "nothing", "--root", str(tmp_path))
    assert result.exit_code == 2
    assert result.output == f"error: no profile 'nothing' in {tmp_path / 'params'}: there are none\n"
    with_traceback = invoke("--traceback", "run", "nothing", "--root", str(tmp_path))
    assert isinstance(with_traceback.exception, ValueError)


def test_an_unknown_command_suggests_one():
    result = invoke("stroe")
    assert result.exit_code == 2
    assert "Did you mean 'store'?" in result.output


def test_a_missing_package_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "needs_a_package.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "run", COMMANDS["run"]._replace(module="needs_a_package"))
    result = invoke("run", "p")
    assert result.exit_code == 2
    needed = "error: `ragkv run` needs an optional package: pip install 'ragkv[evaluation]' (No module named"
    assert result.output.startswith(needed)


def test_an_answer_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("Late the cook wrote VAR PIGA 414.")
    (tmp_path / "b.md").write_text("Then the poet wrote VAR REDA PIGA.")
    asked = ("answer", "Find VAR PIGA?", "--model", "tiny-llama", "--ratio", "1")
    result = invoke(*asked, str(tmp_path / "a.txt"), str(tmp_path / "b.md"))
    assert result.exit_code == 0, result.output
    assert "414" in result.stdout
    folder = invoke(*asked, str(tmp_path), "--store", str(tmp_path / "kv"), "--max-new-tokens", "2")
    assert result.stdout.startswith(folder.stdout.strip())
    assert "(cut off after 2 tokens; --max-new-tokens gives it more)" in folder.output
    assert list((tmp_path / "kv").glob("*/*.safetensors"))
    foreign = invoke(*asked, str(tmp_path), "--context", "no-such-file", "--behind-prefix")
    assert foreign.exit_code == 2
    assert "error: there is no learned context no-such-file: train one with `ragkv context" in foreign.output
    missing = invoke(*asked, str(tmp_path / "c.txt"))
    assert missing.exit_code == 2
    assert missing.output.startswith("error: there is no folder or file")
    no_model = invoke("answer", "Find VAR PIGA?", str(tmp_path / "a.txt"))
    assert no_model.exit_code == 2 and "--model" in no_model.output


def test_a_warning_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("Late the cook wrote VAR PIGA 414.")
    (tmp_path / "b.xyz").write_text("not read")
    result = invoke("answer", "Find VAR PIGA?", str(tmp_path), "--model", "tiny-llama", "--max-new-tokens", "1")
    kinds = ".txt, .md, .html, .htm, .pdf"
    line = f"warning: files of {tmp_path} that are not read: 1 .xyz (read are {kinds})"
    assert [each for each in result.stderr.splitlines() if "not read" in each] == [line]


def test_an_error_that_a_command_explains_itself_is_told_once():
    result = invoke("store", "verify", "no/such/folder")
    assert result.exit_code == 2
    assert result.output.count("error:") == 1
