"""A forward whose keys and values lie in a workspace, over its graphs where few tokens are computed."""

from torch import Tensor

from ragkv import decoder
from ragkv.attention import Backend, auto, triton
from ragkv.cache import KV, write, write_first
from ragkv.forward import Clock, Forward, Watch
from ragkv.loading import ReusedKV
from ragkv.prompt import Prompt
from ragkv.workspace import Workspace

BLOCK = 8  # layers of a graph that does not wait for those behind


class WorkspaceForward(Forward):
    """`Forward` in a workspace that has been checked for its prompt."""

    def __init__(self, workspace: Workspace, prompt: Prompt, reuse: ReusedKV, attend: Backend, clock: Clock):
        self._workspace, self._in_graphs = workspace, attend in (auto, triton)  # graphs hold the package's own kernel
        super().__init__(workspace.model, prompt, reuse, attend, clock)
        self.layers = workspace.cache(len(prompt.ids))
        self._placed: set[int] = set()

    def start(self, layers: range) -> None:
        with self.clock("load"):
            for span in self._workspace.spans(layers):
                if not self.reuse.place(span, self._workspace.layers, self.rotary):
                    break  # this GPU's layers and those behind them come one by one
                self._placed.update(span)
        super().start(range(layers.start + len(self._placed), layers.stop))

    def through(self, layers: range, hidden: Tensor, active: Tensor, watch: Watch | None = None) -> Tensor:
        if watch is None and self._replays(active):
            return self._replay(layers, hidden, active)
        return super().through(layers, hidden, active, watch)

    def _attention(self, hidden: Tensor, active: Tensor, power: float) -> Tensor:
        if not self._replays(active):
            return super()._attention(hidden, active, power)
        self._replay(range(len(self.layers)), hidden, active, power)
        return self._workspace.weights

    def _replays(self, active: Tensor) -> bool:
        return self._in_graphs and self._workspace.replays(active)

    def _replay(self, layers: range, hidden: Tensor, active: Tensor, power: float | None = None) -> Tensor:
        """Graphs of all layers or, while what they reuse is on its way, of some at a time."""
        parts = [layers]
        if not self._placed.issuperset(layers):
            parts = [layers[i : i + BLOCK] for i in range(0, len(layers), BLOCK)]
        for part in parts:
            for index in part:
                self._place(index, active.to(self._workspace.devices[index]))
            hidden = self._workspace.replay(part, hidden, active, power)
        return hidden

    def _rotary(self) -> decoder.Rotary:
        return self._workspace.rotary

    def _fuse(self, index: int, fresh: KV, active: Tensor) -> KV:
        self._place(index, active)
        write(self.layers[index], fresh, self.rotary, active, active)
        return self.layers[index]

    def _place(self, index: int, active: Tensor) -> None:
        """What a layer reuses, unless it is there already."""
        if index in self._placed:
            return
        stored = self._stored(index, active)
        if stored is not None:
            write_first(self.layers[index], stored, self.rotary)
        self._placed.add(index)
