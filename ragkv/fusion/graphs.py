"""A workspace's layers over few tokens as CUDA graphs.

Where few tokens are computed, starting the kernels one by one takes longer than running them. A graph of several layers
starts at once. It needs the same addresses and shapes every time: keys and values lie in a workspace, and the number of
rows is rounded up with padding.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ragkv.fusion.padded_layers import PaddedLayers
from ragkv.fusion.workspace_memory import WorkspaceMemory
from ragkv.loading.layer_groups import layer_groups
from ragkv.models.out_of_memory import explained

STEP = 64  # a graph's number of rows is a multiple of this


class Graph(Protocol):
    """A recorded sequence of kernels."""

    def replay(self) -> None: ...


Capture = Callable[[torch.device, Callable[[], None], str], Graph]
"""Takes a device, a function that starts kernels there, and what an error message calls it."""


class CudaCapture:
    """Captures CUDA graphs that run one at a time, and so share their memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def __call__(self, device: torch.device, run: Callable[[], None], what: str) -> torch.cuda.CUDAGraph:
        lower = "lower the workspace's tokens or rows"
        with torch.cuda.device(device), explained(f"a CUDA graph over {what}", device, lower):
            run()  # compiles the kernels
            torch.cuda.synchronize(device)
            graph = torch.cuda.CUDAGraph()
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            with torch.cuda.graph(graph, self._pool, self._streams[device], capture_error_mode="thread_local"):
                run()
        return graph


class LayerGraphs:
    """Graphs of the layers over up to `rows` tokens, captured for each rounded number of rows when first needed."""

    def __init__(self, memory: WorkspaceMemory, layers: PaddedLayers, rows: int, capture: Capture):
        self._memory = memory
        self._layers = layers
        self._rows = rows
        self._capture = capture
        self._graphs: dict[tuple, Graph] = {}
        self._inputs: dict[tuple, tuple[Tensor, Tensor]] = {}

    def cover(self, count: int) -> bool:
        """Whether there are graphs for this number of tokens."""
        return count <= self._rows

    @property
    def weights(self) -> Tensor:
        """Attention weights of the last `replay` with a power, ``(layers, heads, tokens)``; overwritten by the next."""
        return self._layers.weights

    def replay(
        self,
        layers: range,
        hidden: Tensor,
        active: Tensor,
        power: float | None = None,
        before: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Run layers over some tokens; the keys and values of all others are in place.

        Parameters
        ----------
        hidden
            ``(1, active, hidden)``.
        active
            ``(active,)``: the tokens' positions.
        power
            Also sum the attention weights, raised to this power, into `weights`.
        before
            Called with each layer before it runs.

        Returns
        -------
        Tensor
            ``(1, active, hidden)``; the next call overwrites it.
        """
        count = len(active)
        rows = -(-count // STEP) * STEP
        padding = rows - count
        device = None
        for group in layer_groups(layers, self._memory.devices):
            if self._memory.devices[group.start] != device:
                device = self._memory.devices[group.start]
                states, positions = self._input(device, rows)
                states[:, :padding] = 0
                states[:, padding:] = hidden
                positions[:padding] = -1
                positions[padding:] = active
                hidden = states[:, padding:]
            if before is not None:
                for index in group:
                    before(index)
            self._graph(group, rows, power).replay()
        return hidden

    def _input(self, device: torch.device, rows: int) -> tuple[Tensor, Tensor]:
        """The buffers that a graph reads states, ``(1, rows, hidden)``, and positions, ``(rows,)``, from."""
        if (device, rows) not in self._inputs:
            model = self._memory.model
            states = torch.zeros(1, rows, model.config.hidden_size, dtype=model.dtype, device=device)
            self._inputs[device, rows] = states, torch.full((rows,), -1, device=device)
        return self._inputs[device, rows]

    def _graph(self, span: range, rows: int, power: float | None) -> Graph:
        """The graph of some layers over this number of rows, captured if there is none yet."""
        key = (span, rows, power)
        if key not in self._graphs:
            device = self._memory.devices[span.start]
            states, positions = self._input(device, rows)
            saved_states, saved_positions = states.clone(), positions.clone()
            states.zero_()
            positions.fill_(-1)  # so that running it to compile the kernels changes no keys and values

            def run() -> None:
                states.copy_(self._layers.run(span, states, positions, power))

            self._graphs[key] = self._capture(device, run, f"{rows} tokens")
            states.copy_(saved_states)
            positions.copy_(saved_positions)
        return self._graphs[key]
