"""What `ragkv serve` tells the worker and the HTTP layer, which are processes of their own."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ragkv.models.load import load_tokenizer
from ragkv.rag.rag import INSTRUCTION

VARIABLE = "RAGKV_SERVING"  # of the environment: the settings for the HTTP layer


@dataclass(frozen=True)
class Settings:
    """The settings of a served model.

    Attributes
    ----------
    model
        Its folder.
    store
        The store's folder or URL.
    address
        The path of the worker's socket.
    dtype
        Of weights, keys and values, as for `ragkv.load_model`.
    format
        Of the segments in the store, see `ragkv.store.quantize`.
    selector, options
        What to recompute of requests that do not say so themselves.
    context, behind_prefix
        What chunks are computed behind, see `ragkv.rag.Rag`.
    instruction
        The text before the documents.
    tokens
        The longest prompt.
    queue
        How many requests may wait in the worker.
    threads
        Of the worker's computations on a CPU; None leaves it to PyTorch.
    """

    model: str
    store: str
    address: str
    dtype: str = "auto"
    format: str = "model"
    selector: str = "a3"
    options: Mapping[str, Any] = field(default_factory=dict)
    context: str | None = None
    behind_prefix: bool = False
    instruction: str = INSTRUCTION
    tokens: int = 8192
    queue: int = 64
    threads: int | None = None

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """Settings as `to_json` wrote them."""
        return cls(**json.loads(text))

    def to_json(self) -> str:
        """The settings as text, for another process."""
        return json.dumps(asdict(self))

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(Path(self.model))
