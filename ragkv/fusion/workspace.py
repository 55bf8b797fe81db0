"""A workspace: memory for one prompt at a time, and on a GPU the layers over few tokens as CUDA graphs.

Where few tokens are computed, as in a probe's passes and in decoding, starting the kernels one by one takes longer than
running them. A graph of several layers starts at once. It needs the same addresses and shapes every time: keys and
values have room for the longest prompt, and the number of tokens is rounded up, with rows that see and leave nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion.workspace_memory import WorkspaceMemory
from ragkv.loading.transfer import parts_of
from ragkv.models import decoder
from ragkv.models.out_of_memory import explained

STEP = 64  # rows of a graph are a multiple of it


class Workspace(WorkspaceMemory):
    """Room for prompts of a model, used by one after the other. The model's weights stay as they are meanwhile.

    Parameters
    ----------
    tokens
        The longest prompt, with what is decoded behind it.
    rows
        Up to so many tokens are computed by a graph. Each number of rows, rounded up, is captured once, when it is
        first needed.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, *, rows: int = 2048):
        super().__init__(model, tokens)
        self.rows, self.graphs = rows, self.kernels  # only these let rows be added
        self._pool = torch.cuda.graph_pool_handle() if self.graphs else None  # graphs run one at a time
        self._capturing: dict[torch.device, torch.cuda.Stream] = {}
        self._captured: dict[tuple, torch.cuda.CUDAGraph] = {}
        self._inputs: dict[tuple, tuple[Tensor, Tensor]] = {}

    def replays(self, active: Tensor) -> bool:
        """Whether there are graphs for so many tokens."""
        return self.graphs and len(active) <= self.rows

    def replay(
        self,
        layers: range,
        hidden: Tensor,
        active: Tensor,
        power: float | None = None,
        before: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Layers over the tokens at `active`, whose other keys and values are in place; with `power`, their `weights`.

        `before` is called with each layer before it runs. The result stays until the next call.
        """
        count, device = len(active), None
        rows = -(-count // STEP) * STEP
        for part in parts_of(layers, self.devices):
            if self.devices[part.start] != device:
                device = self.devices[part.start]
                states, positions = self._input(device, rows)
                states[:, : rows - count] = 0
                states[:, rows - count :] = hidden
                positions[: rows - count] = -1
                positions[rows - count :] = active
                hidden = states[:, rows - count :]
            if before is not None:
                for index in part:
                    before(index)
            self._graph(part, rows, power).replay()
        return hidden

    def greedy(self, token: int, position: int) -> Iterator[int]:
        """The tokens that follow one at `position`, behind the prompt whose keys and values are here; as room allows.

        On a GPU the next step runs already while the host looks at a token.
        """
        step, ahead = self._steps(token, position), int(self.graphs)
        coming: deque[Callable[[], int]] = deque()
        for place in count(position):
            while len(coming) <= ahead and place + len(coming) < self.tokens:
                coming.append(step())
            if not coming:
                return
            yield coming.popleft()()

    def _steps(self, token: int, position: int) -> Callable[[], Callable[[], int]]:
        """A function that starts the next step, and gives another one that waits for its token."""
        given = torch.tensor([token, position])
        graph = None
        if self.graphs and len(self.spans(range(len(self.layers)))) == 1:
            state, graph = self._decoding
            state.copy_(given)
        else:
            state = given.to(self.devices[0])

        def step() -> Callable[[], int]:
            if graph is None:
                self._advance(state)
            else:
                graph.replay()
            return _copied(state)

        return step

    @cached_property
    def _decoding(self) -> tuple[Tensor, torch.cuda.CUDAGraph]:
        """A graph of a whole step: where it finds a token and its position, and leaves the next ones."""
        state = torch.tensor([0, -1], device=self.devices[0])
        graph = self._capture(self.devices[0], lambda: self._advance(state), "decoding")
        return state, graph

    def _advance(self, state: Tensor) -> None:
        """From a token and its position, ``(2,)``, to the next ones, in place."""
        state[:1] = self._token(state).argmax(-1).to(state.device)
        state[1] += 1

    def _token(self, given: Tensor) -> Tensor:
        """The logits of a token at its position, ``(2,)``; at position -1 it leaves nothing."""
        embedding = self.model.model.embed_tokens
        hidden = embedding(given[:1].to(embedding.weight.device))[None]
        for span in self.spans(range(len(self.layers))):
            device = self.devices[span.start]
            hidden = self._through(span, hidden.to(device), given[1:].to(device))
        return decoder.logits(self.model, hidden)[:, 0]

    def _input(self, device: torch.device, rows: int) -> tuple[Tensor, Tensor]:
        """Where a graph finds its rows' states, ``(1, rows, hidden)``, and positions, -1 for rows that do not count."""
        if (device, rows) not in self._inputs:
            size, dtype = self.model.config.hidden_size, self.model.dtype
            states = torch.zeros(1, rows, size, dtype=dtype, device=device)
            self._inputs[device, rows] = states, torch.full((rows,), -1, device=device)
        return self._inputs[device, rows]

    def _graph(self, span: range, rows: int, power: float | None) -> torch.cuda.CUDAGraph:
        """The layers' graph over so many rows, captured when it is first asked for."""
        key = (span, rows, power)
        if key not in self._captured:
            device = self.devices[span.start]
            states, positions = self._input(device, rows)
            kept = states.clone(), positions.clone()
            states.zero_()
            positions.fill_(-1)

            def run() -> None:
                states.copy_(self._through(span, states, positions, power))

            self._captured[key] = self._capture(device, run, f"{rows} tokens")
            states.copy_(kept[0])
            positions.copy_(kept[1])
        return self._captured[key]

    def _capture(self, device: torch.device, run: Callable[[], None], what: str) -> torch.cuda.CUDAGraph:
        lower = "lower the workspace's tokens or rows"
        with torch.cuda.device(device), explained(f"a CUDA graph over {what}", device, lower):
            run()  # compiles the kernels
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            if device not in self._capturing:
                self._capturing[device] = torch.cuda.Stream(device)
            with torch.cuda.graph(graph, self._pool, self._capturing[device], capture_error_mode="thread_local"):
                run()
        return graph


def _copied(state: Tensor) -> Callable[[], int]:
    """Copy a token to the host as soon as it is there; the result waits for it."""
    if not state.is_cuda:
        token = int(state[0])
        return lambda: token
    there = torch.empty(1, dtype=state.dtype, pin_memory=True)
    there.copy_(state[:1], non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(state.device))

    def wait() -> int:
        copied.synchronize()
        return int(there)

    return wait
