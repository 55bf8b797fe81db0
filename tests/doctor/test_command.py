"""``ragkv doctor``: a screen, and an exit code."""

from typer.testing import CliRunner

from ragkv.cli import app
from ragkv.doctor.checks import Check


def test_one_screen_and_an_exit_code(monkeypatch, folder):
    run = CliRunner().invoke
    fine = run(app, ["doctor", str(folder), "--store", "memory://doctor"])
    assert fine.exit_code == 0
    assert len(fine.output.splitlines()) <= 24
    for state, code in (("warning", 0), ("problem", 1)):
        one = Check("disk", state, "it is slow", "buy another")
        monkeypatch.setattr("ragkv.doctor.command.examine", lambda *_, one=one: [one, Check("GPU", "ok", "none")])
        done = run(app, ["doctor"])
        assert done.exit_code == code
        assert [line.split() for line in done.output.splitlines()] == [
            [state, "disk", "it", "is", "slow"], ["->", "buy", "another"], ["ok", "GPU", "none"],
        ]  # fmt: skip
