"""The connector that vLLM loads: it puts fused keys and values into vLLM's paged memory.

vLLM makes one in the process of its scheduler, which asks the worker, and one in each process that computes, which
copies from the worker's buffers. What cannot be fused is prefilled by vLLM, and a line in the log says why.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from ragkv.serving.buffers import Buffers, KVShape
from ragkv.serving.identity import identity
from ragkv.serving.mapped import MappedBuffers
from ragkv.serving.metrics import PrometheusMetrics, Stats
from ragkv.serving.pinned import CudaPinning
from ragkv.serving.scheduling import Load, Scheduling
from ragkv.serving.worker_client import WorkerClient

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.ragkv")  # a name that vLLM's log settings cover


@dataclass
class Loads(KVConnectorMetadata):
    """What the computing processes have to copy before a step."""

    loads: list[Load]


@dataclass
class Loaded(KVConnectorWorkerMetadata):
    """Requests whose buffers have been read."""

    requests: set[str]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        assert isinstance(other, Loaded)
        return Loaded(self.requests | other.requests)


class RagkvConnector(KVConnectorBase_V1):
    """Fused prompts for vLLM.

    Its options are entries of ``kv_connector_extra_config``: ``address``, the path of the worker's socket;
    ``timeout``, seconds that the worker has for a request; ``buffers``, how many prompts are handed over at a time;
    ``queue``, how many requests may wait for a buffer.
    """

    def __init__(self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"):
        super().__init__(vllm_config, role, kv_cache_config)
        model = vllm_config.model_config
        self._block_size = vllm_config.cache_config.block_size
        self._shape = KVShape(
            model.hf_text_config.num_hidden_layers, model.get_total_num_kv_heads(), model.get_head_size(), model.dtype
        )
        self._loaded: set[str] = set()
        self._failed: set[int] = set()
        self._on_gpu = vllm_config.device_config.device_type == "cuda"
        self._copied: torch.cuda.Event | None = None  # reached when the copies of this step have ended
        if role == KVConnectorRole.WORKER:
            self._mapped = MappedBuffers(self._shape, CudaPinning() if self._on_gpu else None)
        else:
            _check(vllm_config, kv_cache_config)
            option = self._kv_transfer_config.get_from_extra_config
            buffers = Buffers(option("buffers", 4), self._shape.numbers(model.max_model_len) * model.dtype.itemsize)
            client = WorkerClient(
                option("address", ""),
                identity(model.model, model.hf_text_config, model.dtype),
                buffers,
                timeout=option("timeout", 60.0),
                queue=option("queue", 256),
            )
            prefix_caching = bool(vllm_config.cache_config.enable_prefix_caching)
            self._scheduling = Scheduling(client, logger, prefix_caching=prefix_caching)

    # In the scheduler's process:

    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        return self._scheduling.tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        if num_external_tokens > 0:
            self._scheduling.load(request, blocks.get_block_ids()[0], num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return Loads(self._scheduling.take_loads())

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        worker = connector_output.kv_connector_worker_meta
        if isinstance(worker, Loaded):
            self._scheduling.loaded(worker.requests)

    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._scheduling.finished(request.request_id)
        return False, None

    def get_kv_connector_stats(self) -> Stats | None:
        return Stats.of(self._scheduling.take_seen()) if self._role == KVConnectorRole.SCHEDULER else None

    def shutdown(self) -> None:
        if self._role == KVConnectorRole.SCHEDULER:
            self._scheduling.close()

    # In the processes that compute:

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        metadata = self._get_connector_metadata()
        assert isinstance(metadata, Loads)
        for load in metadata.loads:
            try:
                self._copy(load, forward_context.no_compile_layers)
            except (OSError, RuntimeError, MemoryError) as error:
                logger.error("request %s: its fused keys and values cannot be read: %s", load.request, error)
                self._failed.update(load.blocks[load.start // self._block_size :])
            self._loaded.add(load.request)
        if self._on_gpu and metadata.loads:
            self._copied = torch.cuda.current_stream().record_event()

    def _copy(self, load: Load, layers: dict[str, Any]) -> None:
        """Write this process's layers and heads, by the layers' own update of their cache, whatever its layout is."""
        fused = self._mapped.keys_and_values(load.fused.buffer, load.fused.tokens)[:, :, load.start : load.stop]
        positions = torch.arange(load.start, load.stop)
        blocks = torch.tensor(load.blocks)[positions // self._block_size]
        slots = blocks * self._block_size + positions % self._block_size
        for index, layer in _attention_layers(layers):
            device, heads = layer.kv_cache.device, self._heads(layer)
            # All heads, as only what is contiguous is copied to a GPU without the host's help.
            keys, values = [part.to(device, non_blocking=True)[:, heads] for part in fused[index]]
            layer.impl.do_kv_cache_update(layer, keys, values, layer.kv_cache, slots.to(device))

    def _heads(self, layer: Any) -> slice:
        """The KV heads that this process has: a share of them, or one that several processes have."""
        first = get_tensor_model_parallel_rank() * self._shape.kv_heads // get_tensor_model_parallel_world_size()
        return slice(first, first + layer.impl.num_kv_heads)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        if self._copied is not None:  # the worker may write to the buffers once they are known to be read
            self._copied.synchronize()
            self._copied = None
        loaded, self._loaded = self._loaded, set()
        return Loaded(loaded) if loaded else None

    def get_block_ids_with_load_errors(self) -> set[int]:
        failed, self._failed = self._failed, set()
        return failed

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: all layers are loaded before the step."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing to save: what chunks need is in ragkv's store."""

    def wait_for_save(self) -> None:
        """Nothing to wait for: nothing is saved."""

    # For vLLM's metrics:

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, *arguments: Any, **named: Any) -> PrometheusMetrics:
        return PrometheusMetrics(*arguments, **named)


def _attention_layers(layers: dict[str, Any]) -> Iterator[tuple[int, Any]]:
    """The attention layers among vLLM's, and their numbers in the model."""
    for name, layer in layers.items():
        if getattr(layer, "kv_cache", None) is not None:
            yield extract_layer_index(name), layer


def _check(config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> None:
    """Refuse, when vLLM starts, settings with which fused keys and values would be wrong."""
    if config.cache_config.cache_dtype not in ("auto", None):
        raise ValueError(f"ragkv needs a KV cache in the model's dtype, not {config.cache_config.cache_dtype!r}")
    if config.model_config.quantization is not None:
        raise ValueError("ragkv does not serve quantised models with vLLM: the worker would compute with other weights")
    if len(kv_cache_config.kv_cache_groups) != 1:
        raise ValueError("ragkv needs a model whose layers all attend alike: without sliding windows or state spaces")
    if config.speculative_config is not None:
        raise ValueError("ragkv does not serve with speculative decoding: the draft model has no fused keys and values")
