"""Text to hide needles in: generated prose, essays, or sentences from the user's own files."""

import random
import re
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ragkv.benchmarks.essays import ESSAYS, read_essays
from ragkv.prompt.documents import text_files
from ragkv.prompt.encoding import encode
from ragkv.prompt.formats import read_text

GENERATED = "generated"

# No digits and no names, so that a needle hidden among these sentences cannot be confused with them.
_WORDS = {
    name: words.split(", ")
    for name, words in {
        "person": "baker, teacher, farmer, carpenter, neighbour, gardener, sailor, painter, shepherd, widow, doctor, "
        "librarian, weaver, traveller, boy next door, girl from the mill, old soldier, young clerk",
        "quality": "quiet, narrow, heavy, pale, careful, cheerful, worn, plain, damp, dusty, crooked, gentle, broad, "
        "faded, familiar, sturdy, simple, small",
        "thing": "basket, ladder, lantern, notebook, wheelbarrow, kettle, coat, chair, cart, letter, blanket, map, "
        "clock, spade, hammer, wooden box, loaf of bread, pair of boots",
        "place": "orchard, harbour, kitchen, market, meadow, workshop, barn, schoolyard, bridge, river bank, garden, "
        "station, churchyard, inn, forest path, village square",
        "when": "in the morning, late in the evening, after the rain, before breakfast, at the end of summer, on most "
        "days, during the long winter, once in a while, on the way home, soon after sunrise, toward noon",
        "did": "carried, mended, forgot, borrowed, cleaned, found, painted, lost, bought, hid, measured, moved, "
        "put away, looked at, asked about, sold",
        "went": "walked slowly, waited, sat down, hurried, stood for a while, rested, wandered about, met a friend, "
        "sang to the birds, watched the clouds, talked about the weather, fell asleep",
        "weather": "wind, rain, fog, sunlight, frost, snow, thunder, evening light, smell of hay, sound of the bells",
        "change": "grew weaker, came back, lasted for hours, was gone by noon, surprised nobody, reached the valley, "
        "settled over the fields, made the dogs restless, kept everyone indoors",
        "thought": "there was plenty of time, the road would be dry again, work is easier with company, little had "
        "changed over the years, patience is worth the trouble, the harvest would be good, nobody was to blame, "
        "the best days were still to come",
        "link": "but, and, so, because, although, while",
        "reason": "because, although, while, once, before",
    }.items()
}
_PATTERNS = (
    "[when] the [person] [did] the [quality] [thing].",
    "the [person] [went] near the [place], [link] the [weather] [change].",
    "[when] the [weather] [change], and the [person] [went].",
    "the [quality] [thing] in the [place] belonged to the [person].",
    "it seemed to the [person] that [thought].",
    "nobody [went] in the [place] as often as the [person] did.",
    "the [person] and the [person] [did] a [quality] [thing] together.",
    "who [did] the [thing] behind the [place], if not the [person]?",
    "people at the [place] liked to say that [thought].",
    "there was a [quality] [thing] by the [place], [link] the [person] [did] it [when].",
    "[when] everyone [went] at the [place].",
    "the way from the [place] to the [place] was [quality], [link] the [weather] [change].",
    "the [person] never [did] a [thing] without a reason.",
    "[reason] the [weather] [change], the [person] [went] by the [quality] [place].",
)
_ADVICE = f"Put .txt or .md files with English text there, or choose the source {GENERATED!r}"


Sentences = Callable[[random.Random], Iterator[str]]


def sentences(source: str, root: Path) -> Sentences:
    """Read a haystack once; returns a function that takes a random generator and yields sentences endlessly.

    Parameters
    ----------
    source
        ``generated``: random sentences made from word lists, without digits or names. ``essays``: Paul Graham's
        essays for evaluation, see `ragkv.benchmarks.essays`. Otherwise a folder of .txt and .md files, relative to
        `root` (``./essays`` if that is its name). Sentences of essays and files come in order, repeated endlessly,
        starting at a random one.

    Raises
    ------
    ValueError
        The folder contains no text, or a file is not UTF-8.
    ImportError
        The essays are not installed.
    """
    if source == GENERATED:
        return generated
    own = essay_sentences() if source == ESSAYS else read_sentences(root / source)
    return lambda rng: islice(cycle(own), rng.randrange(len(own)), None)


def haystack_files(source: str, root: Path) -> list[Path]:
    """The folder that `sentences` reads, if there is one."""
    return [] if source in (GENERATED, ESSAYS) else [root / source]


def generated(rng: random.Random) -> Iterator[str]:
    """Endless random sentences made from the patterns and word lists above."""
    while True:
        pattern = rng.choice(_PATTERNS)
        sentence = re.sub(r"\[(\w+)\]", lambda field: rng.choice(_WORDS[field[1]]), pattern)
        yield sentence[0].upper() + sentence[1:]


def essay_sentences() -> list[str]:
    """The sentences of the essays for evaluation, in order of file name."""
    return [sentence for text in read_essays("evaluation").values() for sentence in split_sentences(text)]


def read_sentences(folder: Path) -> list[str]:
    """The sentences of a folder's .txt and .md files, in order of file name.

    Raises
    ------
    ValueError
        The folder contains no text, or a file is not UTF-8.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise ValueError(f"there is no haystack folder {folder}. {_ADVICE}")
    files = text_files(folder, subfolders=False)
    if not files:
        raise ValueError(f"no .txt or .md files in the haystack folder {folder}. {_ADVICE}")
    every = [sentence for file in files for sentence in split_sentences(read_text(file))]
    if not every:
        raise ValueError(f"all .txt and .md files in the haystack folder {folder} are empty. {_ADVICE}")
    return every


def split_sentences(text: str) -> list[str]:
    """Split a text after ``.``, ``!`` or ``?`` where white space follows; white space within sentences is collapsed."""
    parts = (" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+", text))
    return [part for part in parts if part]


def fill(sentences: Iterator[str], tokenizer: PreTrainedTokenizerBase, budget: int) -> list[str]:
    """As many sentences as fit into `budget` tokens when joined by spaces.

    Parameters
    ----------
    sentences
        An endless iterator; a few more sentences are consumed than are returned.
    """
    taken: list[str] = []
    spare = budget
    # First count sentence by sentence, which is cheap but may differ from the count of the joined text.
    while spare >= 0:
        while spare >= 0:
            taken.append(next(sentences))
            spare -= len(encode(tokenizer, taken[-1]))
        spare = budget - len(encode(tokenizer, " ".join(taken)))
    while taken and len(encode(tokenizer, " ".join(taken))) > budget:
        taken.pop()
    return taken
