"""Texts to train contexts on: prose alone, from installed packages, and none of what is evaluated."""

from importlib.metadata import PathDistribution

import pytest

from ragkv.benchmarks import training_texts
from ragkv.benchmarks.training_texts import english_texts, prose, write_texts

SENTENCES = "The mill stands by the river. Its wheel turns slowly in summer, and faster when the snow melts in spring. "
PROSE = 12 * SENTENCES


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package whose docstrings and description are known."""
    about = tmp_path / "mill-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: mill\nVersion: 1.0\n\n{PROSE}about the package")
    code = tmp_path / "mill"
    (code / "tests").mkdir(parents=True)
    (code / "wheel.py").write_text(f'"""{PROSE}of the module"""\n\n\ndef turn():\n    """{PROSE}of the function"""\n')
    (code / "again.py").write_text(f'"""{PROSE}of the module"""\n')
    (code / "broken.py").write_text(f'"""{PROSE}of a template"""\n{{{{ name }}}}(\n')
    (code / "tests" / "test_wheel.py").write_text(f'"""{PROSE}of a test"""\n')
    names = ["wheel.py", "again.py", "broken.py", "gone.py", "tests/test_wheel.py"]
    (about / "RECORD").write_text("".join(f"mill/{name},,\n" for name in names))
    monkeypatch.setattr(training_texts, "distributions", lambda: [PathDistribution(about)])
    monkeypatch.setattr(training_texts, "read_essays", lambda part: {"mod.txt": f"{PROSE}of the {part} essays"})


@pytest.mark.usefixtures("package")
def test_texts_come_from_descriptions_and_docstrings_each_once():
    texts = english_texts()
    assert texts["package-mill"].endswith("about the package")
    docstrings = texts["docstrings-mill"].split("\n\n")
    assert [text.split()[-1] for text in docstrings] == ["module", "function"]


@pytest.mark.usefixtures("package")
def test_no_essay_that_is_evaluated_on_is_among_the_texts():
    texts = english_texts().values()
    assert f"{PROSE}of the training essays" in texts
    assert not any("of the evaluation essays" in text for text in texts)


@pytest.mark.usefixtures("package")
def test_every_text_is_a_file(tmp_path):
    write_texts(tmp_path / "texts")
    assert {path.stem for path in (tmp_path / "texts").iterdir()} == set(english_texts())


@pytest.mark.parametrize(
    "other",
    [
        "Short. Too short.",
        f">>> {SENTENCES}",
        "| a | b | " * 30,
        "http://x http://y http://z " + SENTENCES,
        "0.5 " * 50,
    ],
)
def test_code_tables_links_and_short_lines_are_left_out(other):
    assert prose(f"{PROSE}\n\n{other}\n\n{PROSE}") == f"{PROSE.strip()}\n\n{PROSE.strip()}"
