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
from ragkv.fusion.rows import Rows
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
        self._inputs: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}

    def cover(self, count: int) -> bool:
        """Whether there are graphs for this number of rows."""
        return count <= self._rows

    @property
    def weights(self) -> Tensor:
        """Attention weights of the last `replay` with a power, ``(layers, heads, slots)``; overwritten by the next."""
        return self._layers.weights

    def replay(
        self,
        layers: range,
        hidden: Tensor,
        rows: Rows,
        power: float | None = None,
        before: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Run layers over some tokens; the keys and values of all others are in place.

        Parameters
        ----------
        hidden
            ``(1, rows, hidden)``.
        rows
            These tokens, of one or several prompts.
        power
            Also sum the attention weights, raised to this power, into `weights`.
        before
            Called with each layer before it runs.

        Returns
        -------
        Tensor
            ``(1, rows, hidden)``; the next call overwrites it.
        """
        count = -(-len(rows) // STEP) * STEP
        padding = count - len(rows)
        device = None
        for group in layer_groups(layers, self._memory.devices):
            if self._memory.devices[group.start] != device:
                device = self._memory.devices[group.start]
                states, positions, firsts = self._input(device, count)
                states[:, :padding] = 0
                states[:, padding:] = hidden
                positions[:padding] = -1
                positions[padding:] = rows.positions
                firsts.zero_()
                if not rows.of_one_prompt:
                    firsts[padding:] = rows.firsts
                hidden = states[:, padding:]
            if before is not None:
                for index in group:
                    before(index)
            self._graph(group, count, power).replay()
        return hidden

    def _input(self, device: torch.device, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers that a graph over `count` rows reads.

        Returns
        -------
        states
            ``(1, rows, hidden)``.
        positions
            ``(rows,)``: -1 for padding.
        firsts
            ``(rows,)``: the slot of the first token of each row's prompt, 0 for padding.
        """
        if (device, count) not in self._inputs:
            model = self._memory.model
            states = torch.zeros(1, count, model.config.hidden_size, dtype=model.dtype, device=device)
            positions = torch.full((count,), -1, device=device)
            self._inputs[device, count] = states, positions, torch.zeros_like(positions)
        return self._inputs[device, count]

    def _graph(self, span: range, count: int, power: float | None) -> Graph:
        """The graph of some layers over `count` rows, captured if there is none yet."""
        key = (span, count, power)
        if key not in self._graphs:
            device = self._memory.devices[span.start]
            states, positions, firsts = inputs = self._input(device, count)
            saved = [buffer.clone() for buffer in inputs]
            states.zero_()
            positions.fill_(-1)  # so that running it to compile the kernels changes no keys and values
            firsts.zero_()

            def run() -> None:
                states.copy_(self._layers.run(span, states, positions, positions + firsts, firsts=firsts, power=power))

            self._graphs[key] = self._capture(device, run, f"{count} tokens")
            for buffer, contents in zip(inputs, saved, strict=True):
                buffer.copy_(contents)
        return self._graphs[key]
