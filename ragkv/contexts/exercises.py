"""Training prompts made from plain text: chunks, a question about them, and where its answer begins.

Nothing is labelled. A question asks for words that stand in a chunk (recall; the answer may have begun already), for
words left out of a passage (cloze), or openly about the text, which the model itself answers. No question is of a kind
that the benchmarks ask: there are no needles, no variables and no magic numbers among them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ragkv.prompt import Ids, chat_parts, encode

INSTRUCTIONS = (
    "",
    "Read the notes below.\n",
    "Here is a long text. Read it with care.\n\n",
    "Use only the following documents to answer.\n\n",
    "Below are several passages. Study them first.\n\n",
)
RECALL = (
    "Repeat what follows these words: {words}",
    "Which words come right after these in the text? {words}",
    "Quote how the text goes on from here: {words}",
)
CLOZE = ("Fill the gap in this passage: {words}", "Which words are missing here? {words}")
OPEN = (
    "What is the text above about?",
    "Summarise the text above in one sentence.",
    "Name one fact that the text states.",
    "Which things does the text mention?",
    "What would be a good title for the text?",
)
CUE = 8  # tokens of a passage that a question quotes
MOST_QUESTIONS = 32  # in a batch: their logits take memory, too
GAP = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True)
class Exercise:
    """Prompts of one shape, so that they go through the model as one batch.

    Attributes
    ----------
    prefix
        Token ids before the document; the same for all.
    chunks
        ``(prompts, chunks, tokens)``.
    question
        ``(prompts * questions, tokens)``: each question, and behind it the answer if the text holds it. The questions
        about one prompt's document stand next to each other.
    answer
        Where in `question` the answer begins; its length if the model is to answer.
    """

    prefix: Ids
    chunks: Tensor
    question: Tensor
    answer: int

    @property
    def questions(self) -> int:
        """How many questions each document is asked."""
        return len(self.question) // len(self.chunks)

    @property
    def open(self) -> bool:
        """Whether the answer is still to be given by the model."""
        return self.answer == self.question.shape[1]


class Exercises:
    """Exercises drawn from texts, in an order that a seed decides.

    Parameters
    ----------
    texts
        Token ids of each text; those shorter than a chunk are drawn from only for shorter chunks.
    chunk_tokens
        The shortest and the longest chunk, in tokens.
    document_tokens
        The shortest and the longest document.
    batch_tokens
        Document tokens of all prompts of a batch, about.
    questions
        Questions about each document, or fewer where a batch has many documents. They share its keys and values, so
        they take little more time than one.
    answer_tokens
        The length of an answer.
    open_share
        The share of batches whose answers the model gives: they take longest.
    single_share
        The share of batches whose documents are a single chunk.

    Raises
    ------
    ValueError
        No text is as long as the shortest chunk.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        chunk_tokens: tuple[int, int] = (64, 512),
        document_tokens: tuple[int, int] = (512, 3584),
        batch_tokens: int = 16384,
        questions: int = 4,
        answer_tokens: int = 24,
        open_share: float = 0.1,
        single_share: float = 0.1,
    ):
        shortest = chunk_tokens[0]
        self._texts = [text for text in texts if len(text) >= shortest]
        if not self._texts:
            raise ValueError(f"no text has {shortest} tokens, the shortest chunk: give longer texts, or shorter chunks")
        self._longest_text = max(map(len, self._texts))
        self._weights = list(map(len, self._texts))  # every token is drawn equally often
        self._tokenizer = tokenizer
        self._random = Random(seed)
        self._chunk_tokens = chunk_tokens
        self._document_tokens = document_tokens
        self._batch_tokens = batch_tokens
        self._questions = questions
        self._answer_tokens = answer_tokens
        self._open_share = open_share
        self._single_share = single_share
        self._blank_line = encode(tokenizer, "\n\n")
        self._gap = encode(tokenizer, GAP)

    def draw(self) -> Exercise:
        """The next batch of prompts."""
        random = self._random
        tokens = min(_log_uniform(random, *self._chunk_tokens), self._longest_text)
        document = max(_log_uniform(random, *self._document_tokens), 2 * tokens)
        count = 1 if random.random() < self._single_share else document // tokens
        prompts = max(1, min(MOST_QUESTIONS, self._batch_tokens // (count * tokens)))
        chunks = [[self._chunk(tokens) for _ in range(count)] for _ in range(prompts)]

        prefix, turn_end = chat_parts(self._tokenizer, random.choice(INSTRUCTIONS), "")
        if random.random() < self._open_share:
            question = [*self._text("\n" + random.choice(OPEN)), *turn_end]
            return Exercise(tuple(prefix), torch.tensor(chunks), torch.tensor([question] * prompts), len(question))

        cloze = random.random() < 0.25
        begun = not cloze and random.random() < 0.5  # the answer has begun: with the words that the question quotes
        wording = random.choice(CLOZE if cloze else RECALL).split("{words}")
        before, after = self._text("\n" + wording[0]), self._text(wording[1])
        questions = []
        for of_prompt in chunks:
            for _ in range(min(self._questions, MOST_QUESTIONS // prompts)):
                words, answer = self._quote(random.choice(of_prompt), cloze)
                questions.append([*before, *words, *after, *turn_end, *(words if begun else []), *answer])
        answer_start = len(questions[0]) - len(answer)
        return Exercise(tuple(prefix), torch.tensor(chunks), torch.tensor(questions), answer_start)

    def _chunk(self, tokens: int) -> list[int]:
        """A window of some text, with a blank line at its end as chunks of documents have."""
        body = tokens - len(self._blank_line)
        while True:
            (text,) = self._random.choices(self._texts, self._weights)
            if len(text) >= body:
                start = self._random.randrange(len(text) - body + 1)
                return [*text[start : start + body], *self._blank_line]

    def _quote(self, chunk: Sequence[int], cloze: bool) -> tuple[list[int], list[int]]:
        """What a question quotes of a chunk, and the answer: the words behind it, or the words left out."""
        body = len(chunk) - len(self._blank_line)
        behind = CUE if cloze else 0
        answer_tokens = min(self._answer_tokens // (2 if cloze else 1), body - CUE - behind)
        start = self._random.randrange(body - CUE - answer_tokens - behind + 1)
        answer_start = start + CUE
        answer_stop = answer_start + answer_tokens
        words = list(chunk[start:answer_start])
        if cloze:
            words += [*self._gap, *chunk[answer_stop : answer_stop + CUE]]
        return words, list(chunk[answer_start:answer_stop])

    def _text(self, text: str) -> list[int]:
        return encode(self._tokenizer, text)


def _log_uniform(random: Random, low: int, high: int) -> int:
    return round(math.exp(random.uniform(math.log(low), math.log(high))))
