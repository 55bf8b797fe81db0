"""What a model's segments look like in the store, and by which names they are found."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ragkv.models.fingerprint import fingerprint
from ragkv.prompt import Segment
from ragkv.store.quantize import CODECS, check_format
from ragkv.store.segment_file import DTYPES, FORMAT, hashed, key_of


@dataclass(frozen=True)
class Layout:
    """What a model's segments look like: its fingerprint, the layers' shape and dtype, and how they are stored."""

    model: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    format: str = "model"

    @classmethod
    def of(cls, model: PreTrainedModel, format: str = "model") -> "Layout":
        """The layout of a model's segments in a store of that format (see `ragkv.store.quantize`).

        Raises
        ------
        ValueError
            No such format, or the model's heads do not fit it.
        """
        config, head_dim = model.config, model.model.layers[0].self_attn.head_dim
        check_format(format, head_dim)
        shape = config.num_hidden_layers, config.num_key_value_heads, head_dim
        return cls(fingerprint(model), *shape, model.dtype, format)

    def key(self, segment: Segment) -> str:
        """The segment's name in the store."""
        return key_of(self.identity(segment))

    def tensors(self, segment: Segment) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of every tensor of the segment's file."""
        tokens, codec = len(segment.ids), CODECS.get(self.format)
        dtype, packed = (codec.codes, codec.packed) if codec else (self.dtype, 1)
        shape = [2, self.kv_heads, tokens, self.head_dim // packed]
        names = {"surprisal": ("F32", [tokens])}
        names |= {layer_name(i): (DTYPES[dtype], shape) for i in range(self.layers)}
        if codec:
            names["key_scales"] = ("I8", [self.layers, self.kv_heads, self.head_dim])
            names["value_scales"] = ("I8", [self.layers, self.kv_heads, tokens])
        return names

    def identity(self, segment: Segment) -> dict[str, int | str]:
        """All that determines the segment's values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "dtype": DTYPES[self.dtype],
            "stored_as": self.format,
            "context": hashed(segment.context),
            "ids": hashed(segment.ids),
        }


def layer_name(index: int) -> str:
    return f"layer.{index:03d}"
