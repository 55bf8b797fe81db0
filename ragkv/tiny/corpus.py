"""Documents and questions in the small language, on which the embedded models are trained and evaluated.

A document is a list of sentences of eight tokens. *Statements* are hidden among plain sentences:

- assignments, ``... wrote VAR KELO 532.`` or ``... wrote VAR MIRA KELO.``: RULER's variable tracking;
  the value of a variable is found by following its aliases, *hops* of them;
- needles, ``... keeps KEY Bafoville 17.``: RULER's retrieval, with other keys as distractors. A question asks for one
  key or for several; a key may have several values, or one value of several numbers (as long as a UUID);
- homes and films, ``... visited HOME Dadan Rimoville.``, then ``... praised FILM Babax Dadan.``: a question over
  two passages, as in 2WikiMultihopQA; a person is introduced before the film that they made.

Sentences may be grouped in passages, each after a header such as ``Passage 3:``.

In statements and answers, a value follows its name immediately. Without that, training from scratch does not learn to
look names up (see the notebook on the embedded models).
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
        What a perfect model continues with.
    answers
        The values that are scored; all of them must be in the answer.
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
    """Sentences (lists of words) and questions about them; no two questions are about the same statement."""

    sentences: list[list[str]]
    questions: list[Question]

    @property
    def text(self) -> str:
        return " ".join(map(sentence_text, self.sentences))


def sentence_text(sentence: list[str]) -> str:
    """The words as ordinary text, with no space before the full stop."""
    return " ".join(sentence[:-1]) + sentence[-1]


def _sentence(rng: Random, verb: str, *rest: str) -> list[str]:
    return [rng.choice(words.TIMES), "the", rng.choice(words.PEOPLE), verb, *rest, "."]


def _filler(rng: Random) -> list[str]:
    return _sentence(rng, rng.choice(words.VERBS), "the", rng.choice(words.ADJECTIVES), rng.choice(words.NOUNS))


def ask(*pairs: tuple[str, str]) -> Question:
    """A question for the value of each subject, given as pairs (subject, value)."""
    subjects, values = zip(*pairs, strict=True)
    answer = " ".join(f"{subject} {value}" for subject, value in pairs)
    return Question(
        text=f"Find {' '.join(subjects)}?",
        answer_prefix=subjects[0],
        completion=answer.removeprefix(f"{subjects[0]} "),
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
        Chains of assignments, each of one value and `hops` aliases. The question is about the last alias.
    needles, together
        Keys with a value each. A question asks for `together` of them.
    values_per_key, numbers_per_value
        How many values a key has, each in its own statement and all of them asked for; and how many numbers make up a
        value, 1 to 4.
    films, single_hop
        Films, each with a person and that person's home. The question gives the film and asks for the home. With
        `single_hop` it may also ask for a single step, the film's person or the person's home, as training does.
    noise
        Repeat one plain sentence between the statements, as in RULER's noise haystack.
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
    key_values = [
        [_value(rng, next(numbers), numbers_per_value) for _ in range(values_per_key)] for _ in range(needles)
    ]
    keys = list(zip(cities[:needles], key_values, strict=True))
    groups += [[_needle(rng, key, value) for value in its_values] for key, its_values in keys]
    for start in range(0, needles - together + 1, together):
        chosen = range(start, start + together)
        pairs = [(f"KEY {keys[i][0]}", " ".join(value)) for i in chosen for value in keys[i][1]]
        questions.append((ask(*pairs), [chains + i for i in chosen]))
    for film, who, city in zip(
        rng.sample(words.FILMS, films), rng.sample(words.WHO, films), cities[needles:], strict=True
    ):
        groups.append([_sentence(rng, "visited", "HOME", who, city), _sentence(rng, "praised", "FILM", film, who)])
        pairs = [(f"HOME FILM {film}", city), (f"FILM {film}", who), (f"HOME {who}", city)]
        questions.append((ask(rng.choice(pairs) if single_hop else pairs[0]), [len(groups) - 1]))

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
    with_evidence = []
    for question, its_groups in questions:
        evidence = sorted(place for group in its_groups for place in places[group])
        with_evidence.append(replace(question, evidence=tuple(evidence)))
    return Document(text, with_evidence)


def _value(rng: Random, first: str, numbers: int) -> list[str]:
    """A value of several numbers; no other value has the same first number."""
    return [first, *rng.sample(words.VALUES, numbers - 1)]


def _needle(rng: Random, key: str, value: list[str]) -> list[str]:
    if len(value) == 1:
        return _sentence(rng, "keeps", "KEY", key, *value)
    return ["keeps", "KEY", key, *value, "."]  # eight words with a value of four numbers


def _passages(text: list[list[str]], places: list[list[int]], size: int) -> tuple[list[list[str]], list[list[int]]]:
    """The sentences with a header before every `size` of them, and the new places of the statements."""
    with_headers = []
    for place, sentence in enumerate(text):
        if place % size == 0:
            with_headers.append(["Passage", str(place // size + 1), ":"])
        with_headers.append(sentence)
    return with_headers, [[place + place // size + 1 for place in group] for group in places]
