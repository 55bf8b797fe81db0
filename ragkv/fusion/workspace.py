"""A workspace: memory for one prompt or batch at a time and, on a GPU, CUDA graphs over few tokens.

Few tokens are computed in a probe's passes, behind the selection layer, and in decoding.
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import count

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ragkv.fusion.graphs import Capture, CudaCapture, Graph, LayerGraphs
from ragkv.fusion.padded_layers import PaddedLayers
from ragkv.fusion.workspace_memory import WorkspaceMemory
from ragkv.kernels import kernels_run
from ragkv.models import decoder
from ragkv.models.attention import auto, get_backend, triton


class Workspace:
    """Memory and CUDA graphs for prompts or batches of one model, which share it one after the other.

    The model's weights must not change meanwhile.

    Parameters
    ----------
    tokens
        The longest prompt, including what is decoded after it, or the tokens of all prompts of the largest batch.
    rows
        Up to this number of tokens, of all prompts of a batch together, are computed by a graph. Each number of rows,
        rounded up, is captured once, when it is first needed.
    capture
        Captures the graphs; by default as CUDA graphs.

    Attributes
    ----------
    memory
        What it lends to prefills.
    graphs
        The graphs of the layers; None where the package's own kernels do not run, as only they know padding.
    """

    def __init__(self, model: PreTrainedModel, tokens: int, *, rows: int = 2048, capture: Capture | None = None):
        self.memory = WorkspaceMemory(model, tokens)
        self._layers = PaddedLayers(self.memory)
        self.graphs: LayerGraphs | None = None
        if self.memory.kernels:
            self._capture = capture or CudaCapture()
            self.graphs = LayerGraphs(self.memory, self._layers, rows, self._capture)

    @classmethod
    def if_faster(cls, model: PreTrainedModel, tokens: int, backend: str = "auto") -> "Workspace | None":
        """A workspace where prefills with this attention backend are faster in one, otherwise None.

        They are where the package's own kernels run, as only these are in its graphs.
        """
        in_graphs = get_backend(backend) in (auto, triton)
        on_gpus = all(map(kernels_run, decoder.devices(model)))
        return cls(model, tokens) if in_graphs and on_gpus else None

    def greedy(self, token: int, position: int, slot: int) -> Iterator[int]:
        """The tokens that follow one at `position`, after the prompt in this workspace, as long as there is memory.

        On a GPU the next step already runs while the host looks at a token.

        Parameters
        ----------
        slot
            The number of tokens that the cache holds: without an eviction, this is the position.
        """
        start_step = self._steps(token, position, slot)
        ahead = 1 if self.graphs else 0
        started: deque[Callable[[], int]] = deque()
        for current in count(position):
            while len(started) <= ahead and current + len(started) < self.memory.positions:
                started.append(start_step())
            if not started:
                return
            wait_for_token = started.popleft()
            yield wait_for_token()

    def _steps(self, token: int, position: int, slot: int) -> Callable[[], Callable[[], int]]:
        """A function that starts the next step, and returns another one that waits for its token."""
        first = torch.tensor([token, position, slot])
        graph: Graph | None = None
        if self.graphs and len(self._spans) == 1:
            state, graph = self._decoding
            state.copy_(first)
        else:
            state = first.to(self.memory.devices[0])

        def start_step() -> Callable[[], int]:
            if graph is None:
                self._advance(state)
            else:
                graph.replay()
            return _copy_token(state)

        return start_step

    @cached_property
    def _decoding(self) -> tuple[Tensor, Graph]:
        """A graph of a whole decoding step, and the state that it advances, as `_advance` takes it."""
        device = self.memory.devices[0]
        state = torch.tensor([0, -1, -1], device=device)
        graph = self._capture(device, lambda: self._advance(state), "decoding")
        return state, graph

    def _advance(self, state: Tensor) -> None:
        """Replace a token, its position and its slot, ``(3,)``, by the next ones, in place."""
        state[:1] = self._logits(state).argmax(-1).to(state.device)
        state[1:] += 1

    def _logits(self, state: Tensor) -> Tensor:
        """The logits after a token at its position and slot, ``(3,)``. At slot -1 nothing is written."""
        token, position, slot = state.split(1)
        model = self.memory.model
        hidden = decoder.embed(model, token.to(model.model.embed_tokens.weight.device)[None])
        for span in self._spans:
            device = self.memory.devices[span.start]
            hidden = self._layers.run(span, hidden.to(device), position.to(device), slot.to(device))
        return decoder.logits(model, hidden)[:, 0]

    @property
    def _spans(self) -> list[range]:
        return self.memory.spans(range(len(self.memory.devices)))


def _copy_token(state: Tensor) -> Callable[[], int]:
    """Begin to copy a token to the host; the returned function waits for it."""
    if not state.is_cuda:
        token = int(state[0])
        return lambda: token
    on_host = torch.empty(1, dtype=state.dtype, pin_memory=True)
    on_host.copy_(state[:1], non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(state.device))

    def wait() -> int:
        copied.synchronize()
        return int(on_host)

    return wait
