"""A forward whose keys and values lie in a workspace, over its graphs where few tokens are computed."""

from functools import partial

from torch import Tensor

from ragkv.fusion.cache import write, write_first
from ragkv.fusion.clock import Clock
from ragkv.fusion.forward import Forward, Watch
from ragkv.fusion.workspace import Workspace
from ragkv.loading.reused import ReusedKV
from ragkv.loading.transfer import PartsAhead, parts_of
from ragkv.models.attention import Backend, auto, triton
from ragkv.models.decoder import KV
from ragkv.models.rotary import Rotary
from ragkv.prompt import Prompt


class WorkspaceForward(Forward):
    """`Forward` in a workspace that has been checked for its prompt."""

    def __init__(self, workspace: Workspace, prompt: Prompt, reuse: ReusedKV, attend: Backend, clock: Clock):
        self._workspace, self._in_graphs = workspace, attend in (auto, triton)  # graphs hold the package's own kernel
        super().__init__(workspace.model, prompt, reuse, attend, clock)
        self.layers = workspace.cache(len(prompt.ids))
        self._placed: set[int] = set()  # layers
        self._coming: dict[int, PartsAhead[None]] = {}

    def start(self, layers: range, *, prefix_only: bool = False) -> None:
        room = self._workspace
        processes = {} if prefix_only else dict(room.processes)  # which serve one reader at a time
        with self.clock("load"):
            for span in room.spans(layers):
                parts, own = parts_of(span, room.devices), processes.pop(room.devices[span.start], None)
                coming = self.reuse.place(parts, room.layers, self.rotary, own, prefix_only=prefix_only)
                if coming is None:
                    return super().start(range(span.start, layers.stop), prefix_only=prefix_only)
                self._coming |= coming
                self._placed.update(span)

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
        before = partial(self._place, computed=len(active))
        return self._workspace.replay(layers, hidden, active, power, before=before)

    def _rotary(self) -> Rotary:
        return self._workspace.rotary

    def _fuse(self, index: int, fresh: KV, active: Tensor) -> KV:
        self._place(index, len(active))
        write(self.layers[index], fresh, self.rotary, active, active)
        return self.layers[index]

    def _place(self, index: int, computed: int) -> None:
        """What a layer reuses where so many tokens are computed afresh, unless it is there already."""
        if index in self._coming:
            with self.clock("load"):
                self._coming.pop(index).layer(index)
        elif index not in self._placed:
            stored = self._stored(index, computed, self._workspace.devices[index])
            if stored is not None:
                write_first(self.layers[index], stored, self.rotary)
            self._placed.add(index)
