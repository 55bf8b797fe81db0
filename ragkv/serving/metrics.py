"""What the connector counts, where vLLM shows its own metrics: in the log and at ``/metrics``.

vLLM's own ``vllm:time_to_first_token_seconds`` includes the time in the worker.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats
from vllm.v1.metrics.utils import create_metric_per_engine

from ragkv.serving.scheduling import Seen

COUNTERS = {
    "fused": "Requests whose prompt came fused from the ragkv worker.",
    "fallen_back": "Requests that named their parts and were prefilled by vLLM; the log says why.",
    "segments": "Stored segments (prefixes and chunks) that fused requests needed.",
    "reused": "Segments of these that were in the store; the others were computed and stored.",
}
_BUCKETS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]


class Stats(KVConnectorStats):
    """`Seen`, as vLLM passes it between processes."""

    @classmethod
    def of(cls, seen: Seen) -> "Stats":
        return cls(data={"counts": dict(seen.counts), "seconds": seen.seconds})

    def is_empty(self) -> bool:
        return not self.data.get("counts")

    def reset(self) -> None:
        self.data: dict[str, Any] = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        mine, others = self.data.get("counts", {}), other.data.get("counts", {})
        counts = {name: mine.get(name, 0) + others.get(name, 0) for name in {*mine, *others}}
        seconds = [*self.data.get("seconds", []), *other.data.get("seconds", [])]
        return Stats(data={"counts": counts, "seconds": seconds})

    def reduce(self) -> dict[str, int | float]:
        seconds = sorted(self.data.get("seconds", []))
        median = {"ragkv_prefill_seconds_p50": seconds[len(seconds) // 2]} if seconds else {}
        return {f"ragkv_{name}": count for name, count in self.data.get("counts", {}).items()} | median


class PrometheusMetrics(KVConnectorPromMetrics):
    """The counters of `COUNTERS`, and how long fused prefills took."""

    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any):
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters = {}
        for name, documentation in COUNTERS.items():
            counter = self._counter_cls(name=f"vllm:ragkv_{name}", documentation=documentation, labelnames=labelnames)
            self._counters[name] = create_metric_per_engine(counter, per_engine_labelvalues)
        histogram = self._histogram_cls(
            name="vllm:ragkv_prefill_seconds",
            documentation="Time of a fused prefill in the worker, without waiting.",
            buckets=_BUCKETS,
            labelnames=labelnames,
        )
        self._seconds = create_metric_per_engine(histogram, per_engine_labelvalues)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.get("counts", {}).items():
            self._counters[name][engine_idx].inc(count)
        for seconds in transfer_stats_data.get("seconds", []):
            self._seconds[engine_idx].observe(seconds)
