"""A forward whose keys and values lie in a workspace, over its graphs where what few tokens reuse is in place."""

from torch import Tensor

from ragkv import decoder
from ragkv.attention import Backend, auto, triton
from ragkv.cache import KV, write, write_first
from ragkv.forward import Clock, Forward, Watch
from ragkv.loading import ReusedKV
from ragkv.prompt import Prompt
from ragkv.workspace import Workspace


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
        if watch is None and self._replays(layers, active):
            return self._workspace.replay(layers, hidden, active)
        return super().through(layers, hidden, active, watch)

    def _attention(self, hidden: Tensor, active: Tensor, power: float) -> Tensor:
        layers = range(len(self.layers))
        if not self._replays(layers, active):
            return super()._attention(hidden, active, power)
        self._workspace.replay(layers, hidden, active, power)
        return self._workspace.weights

    def _replays(self, layers: range, active: Tensor) -> bool:
        """Whether graphs can run: what the layers reuse must be in place."""
        return self._in_graphs and self._workspace.replays(active) and self._placed.issuperset(layers)

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
