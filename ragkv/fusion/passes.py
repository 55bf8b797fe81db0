"""The passes that selectors ask for before they choose: few tokens of each prompt, over the reused keys and values."""

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ragkv.fusion.forward import Forward
from ragkv.fusion.rows import Rows
from ragkv.selectors import Ask, Look, Observation, Pass, Selector


class Passes:
    """Runs the passes that several prompts ask for at the same time as one.

    Prompts are numbered as in the batch.
    """

    def __init__(self, forward: Forward):
        self._forward = forward

    def choose(self, selector: Selector, seen: Mapping[int, Observation]) -> dict[int, Tensor]:
        """What the selector chooses for each prompt, see `Selector.choose`."""
        chosen: dict[int, Tensor] = {}
        asking: dict[int, Generator[Pass, Any, Tensor]] = {}
        for number, observation in seen.items():
            choice = selector.choose(observation)
            if isinstance(choice, Tensor):
                chosen[number] = choice
            else:
                asking[number] = choice

        wanted: dict[int, Pass] = {}
        answers: Mapping[int, Any] = dict.fromkeys(asking)  # None starts a generator
        while answers:
            for number, answer in answers.items():
                try:
                    wanted[number] = asking[number].send(answer)
                except StopIteration as finished:
                    chosen[number] = finished.value
            answers = self._run_next(wanted)
        return chosen

    def _run_next(self, wanted: dict[int, Pass]) -> Mapping[int, Any]:
        """Run the first pass that is wanted, with all others of its kind, and take these out of `wanted`.

        The prompts of a batch have one selector, so usually all passes are of one kind.
        """
        if not wanted:
            return {}
        kind = _kind(next(iter(wanted.values())))
        together = {number: wanted.pop(number) for number in list(wanted) if _kind(wanted[number]) == kind}
        looks = {number: one for number, one in together.items() if isinstance(one, Look)}
        if looks:
            return self._look(looks)
        asks = {number: one for number, one in together.items() if isinstance(one, Ask)}
        return self._ask(asks)

    def _look(self, looks: Mapping[int, Look]) -> dict[int, Tensor]:
        """The answers to `Look`, all with the same power."""
        forward = self._forward
        rows = self._rows({number: [look.rows] for number, look in looks.items()})
        weights = forward.weights(rows, next(iter(looks.values())).power)
        answers = {}
        for number in looks:
            start = forward.extents[number].start
            document = forward.prompts[number].document_span
            answers[number] = weights[:, :, start + document.start : start + document.stop]
        return answers

    def _ask(self, asks: Mapping[int, Ask]) -> dict[int, Observation]:
        """The answers to `Ask`, all at the same layer.

        Raises
        ------
        ValueError
            The model has no such layer.
        """
        forward = self._forward
        index = next(iter(asks.values())).layer
        if index not in forward.layers:
            raise ValueError(f"selection layer {index}: this model's layers are 0 to {forward.layers[-1]}")
        rows = self._rows({number: [] for number in asks})
        hidden = forward.through(forward.layers[:index], forward.embed(rows), rows)
        queries, fused, scaling = forward.observe(index, hidden, rows)
        answers = {}
        for number in asks:
            prompt, span = forward.prompts[number], rows.spans[number]
            keys, _ = forward.of_prompt(number, fused)
            answers[number] = Observation(
                prompt,
                forward.reused[number].surprisal,
                queries=queries[:, :, span.start : span.stop],
                keys=keys[:, :, prompt.document_span.start :],
                scaling=scaling,
            )
        return answers

    def _rows(self, looking: Mapping[int, Sequence[Tensor]]) -> Rows:
        """Some tokens of the document, and the question, of the prompts that ask.

        Parameters
        ----------
        looking
            For each prompt that asks, these tokens, counted from the document's first one.
        """
        device = self._forward.device
        by_prompt = []
        for number, prompt in enumerate(self._forward.prompts):
            positions = [torch.empty(0, dtype=torch.long, device=device)]
            if number in looking:
                document, question = prompt.document_span, prompt.question_span
                positions = [tokens.to(device).sort().values + document.start for tokens in looking[number]]
                positions.append(torch.arange(question.start, question.stop, device=device))
            by_prompt.append(torch.cat(positions))
        return Rows.of(by_prompt, self._forward.extents)


def _kind(wanted: Pass) -> tuple[type[Pass], float]:
    """What passes must have in common to be run together."""
    return (Look, wanted.power) if isinstance(wanted, Look) else (Ask, wanted.layer)
