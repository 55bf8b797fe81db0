"""Documents and questions in the small language: what the embedded models are trained and tried on.

A document is a list of sentences of eight tokens. Hidden between plain sentences stand *statements*:

- assignments, ``... wrote VAR KELO 532.`` or ``... wrote VAR MIRA KELO.``: RULER's variable tracking;
  the value of a variable is found by following its aliases, *hops* of them;
- needles, ``... keeps KEY Bafoville 17.``: RULER's retrieval, with other keys as distractors, asked for one
  at a time or several together; a key may have several values, or one value of several numbers, as long as a UUID;
- homes and films, ``... visited HOME Dadan Rimoville.``, then ``... praised FILM Babax Dadan.``: a question over
  two passages, as in 2WikiMultihopQA; a person is introduced before the film that they made.

Sentences may be gathered in passages, each behind a header of its own, ``Passage 3:``.

The value stands right after its name in statement and question; without that, training from scratch does not
learn to look a name up (see the notebook on the embedded models).
"""

from dataclasses import dataclass, replace
from random import Random

from ragkv.tiny import language as words

SENTENCE_TOKENS = 8


@dataclass(frozen=True)
class Question:
    """A question over a document.

    Attributes
    ----------
    text
        What the user asks.
    answer_prefix
        How the answer begins: part of the prompt.
    completion
        What a perfect model says after it.
    answers
        The values that count, all of which must be found.
    evidence
        The sentences that the answer follows from, in order.
    """

    text: str
    answer_prefix: str
    completion: str
    answers: tuple[str, ...]
    evidence: tuple[int, ...] = ()


@dataclass(frozen=True)
class Document:
    """Sentences (lists of words) and the questions that they answer; no two ask about the same statement."""

    sentences: list[list[str]]
    questions: list[Question]

    @property
    def text(self) -> str:
        return " ".join(map(sentence_text, self.sentences))


def sentence_text(sentence: list[str]) -> str:
    """The words as a person writes them: the full stop follows without a space."""
    return " ".join(sentence[:-1]) + sentence[-1]


def _sentence(rng: Random, verb: str, *rest: str) -> list[str]:
    return [rng.choice(words.TIMES), "the", rng.choice(words.PEOPLE), verb, *rest, "."]


def _filler(rng: Random) -> list[str]:
    return _sentence(rng, rng.choice(words.VERBS), "the", rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS))


def ask(*pairs: tuple[str, str]) -> Question:
    """A question for the value of each subject, the pairs being (subject, value)."""
    subjects, values = zip(*pairs, strict=True)
    said = " ".join(f"{subject} {value}" for subject, value in pairs)
    return Question(
        text=f"Find {' '.join(subjects)}?",
        answer_prefix=subjects[0],
        completion=said.removeprefix(f"{subjects[0]} "),
        answers=values,
    )


def make_document(
    rng: Random,
    sentences: int,
    *,
    chains: int = 0,
    hops: int = 0,
    needles: int = 0,
    together: int = 1,
    values_per_key: int = 1,
    numbers_per_value: int = 1,
    films: int = 0,
    single_hop: bool = False,
    noise: bool = False,
    per_passage: int = 0,
) -> Document:
    """A document of `sentences` sentences with the given statements at random places.

    Parameters
    ----------
    chains, hops
        Chains of assignments: one value and `hops` aliases each; the question is about the last alias.
    needles, together
        Keys with a value each; a question asks for `together` of them.
    values_per_key, numbers_per_value
        How many values a key has, each in a statement of its own and all of them asked for; and how many numbers
        a value is made of, 1 to 4.
    films, single_hop
        Films with a person each, and that person's home. The question asks for the home by the film; with
        `single_hop`, as training does to teach the steps, also for the person by the film or the home by the person.
    noise
        One plain sentence again and again between the statements, as RULER's noise haystack.
    per_passage
        Sentences in a passage; 0 for no passages.

    Raises
    ------
    ValueError
        The statements do not fit into the sentences, or there are not enough names for them.
    """
    if needles + films > len(words.CITIES):
        raise ValueError(f"{needles + films} keys and films: there are names for {len(words.CITIES)}, ask for fewer")
    groups: list[list[list[str]]] = []  # statements whose order is kept
    questions: list[tuple[Question, list[int]]] = []  # each with the groups that it asks about
    names = rng.sample(words.VARIABLES, chains * (hops + 1))
    values = rng.sample(words.VALUES, chains)
    for chain in range(chains):
        chain_names = names[chain * (hops + 1) : (chain + 1) * (hops + 1)]
        targets = [values[chain], *chain_names]
        groups.append([_sentence(rng, "wrote", "VAR", *pair) for pair in zip(chain_names, targets, strict=False)])
        questions.append((ask((f"VAR {chain_names[-1]}", values[chain])), [chain]))
    cities = rng.sample(words.CITIES, needles + films)
    numbers = iter(rng.sample([n for n in words.VALUES if n not in values], needles * values_per_key))
    said = [[_value(rng, next(numbers), numbers_per_value) for _ in range(values_per_key)] for _ in range(needles)]
    keys = list(zip(cities[:needles], said, strict=True))
    groups += [[_needle(rng, key, value) for value in of_key] for key, of_key in keys]
    for start in range(0, needles - together + 1, together):
        asked = range(start, start + together)
        pairs = [(f"KEY {keys[i][0]}", " ".join(value)) for i in asked for value in keys[i][1]]
        questions.append((ask(*pairs), [chains + i for i in asked]))
    for film, who, city in zip(
        rng.sample(words.FILMS, films), rng.sample(words.WHO, films), cities[needles:], strict=True
    ):
        groups.append([_sentence(rng, "visited", "HOME", who, city), _sentence(rng, "praised", "FILM", film, who)])
        about = [(f"HOME FILM {film}", city), (f"FILM {film}", who), (f"HOME {who}", city)]
        questions.append((ask(rng.choice(about) if single_hop else about[0]), [len(groups) - 1]))

    statements = sum(map(len, groups))
    if statements > sentences:
        raise ValueError(
            f"{statements} statements do not fit into {sentences} sentences: ask for fewer, or a longer document"
        )
    owners = [group for group, members in enumerate(groups) for _ in members]
    rng.shuffle(owners)
    queues = [iter(group) for group in groups]
    text = [_filler(rng)] * sentences if noise else [_filler(rng) for _ in range(sentences)]
    places: list[list[int]] = [[] for _ in groups]
    for place, owner in zip(sorted(rng.sample(range(sentences), statements)), owners, strict=True):
        text[place] = next(queues[owner])
        places[owner].append(place)
    if per_passage:
        text, places = _passages(text, places, per_passage)
    rng.shuffle(questions)
    return Document(
        text,
        [
            replace(question, evidence=tuple(sorted(place for group in about for place in places[group])))
            for question, about in questions
        ],
    )


def _value(rng: Random, first: str, numbers: int) -> list[str]:
    """A value that begins with a number that no other value begins with."""
    return [first, *rng.sample(words.VALUES, numbers - 1)]


def _needle(rng: Random, key: str, value: list[str]) -> list[str]:
    if len(value) == 1:
        return _sentence(rng, "keeps", "KEY", key, *value)
    return ["keeps", "KEY", key, *value, "."]  # eight words with a value of four numbers


def _passages(text: list[list[str]], places: list[list[int]], size: int) -> tuple[list[list[str]], list[list[int]]]:
    """The sentences with a header before every `size` of them, and where the statements stand now."""
    with_headers = []
    for place, sentence in enumerate(text):
        if place % size == 0:
            with_headers.append(["Passage", str(place // size + 1), ":"])
        with_headers.append(sentence)
    return with_headers, [[place + place // size + 1 for place in group] for group in places]
