"""The layout of a model's segments in the store, and the keys by which they are found."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ragkv.models.fingerprint import fingerprint
from ragkv.prompt import Segment
from ragkv.store.quantize import CODECS, check_format
from ragkv.store.segment_file import DTYPES, FORMAT, hashed, key_of


@dataclass(frozen=True)
class Layout:
    """What a model's segments look like in the store.

    Attributes
    ----------
    model
        The model's fingerprint.
    layers, kv_heads, head_dim, dtype
        Number and shape of the layers, and their dtype as computed.
    format
        How they are stored (see `ragkv.store.quantize`).
    """

    model: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    format: str = "model"

    @classmethod
    def of(cls, model: PreTrainedModel, format: str = "model") -> "Layout":
        """The layout of a model's segments in a store of that format.

        Raises
        ------
        ValueError
            The format does not exist, or the model's heads do not fit it.
        """
        head_dim = model.model.layers[0].self_attn.head_dim
        check_format(format, head_dim)
        return cls(
            model=fingerprint(model),
            layers=model.config.num_hidden_layers,
            kv_heads=model.config.num_key_value_heads,
            head_dim=head_dim,
            dtype=model.dtype,
            format=format,
        )

    @property
    def bytes_per_token(self) -> float:
        """About how many bytes a token takes in a segment's file."""
        codec = CODECS.get(self.format)
        number = codec.codes.itemsize / codec.packed if codec else self.dtype.itemsize
        return 2 * self.layers * self.kv_heads * self.head_dim * number

    def key(self, segment: Segment) -> str:
        """The segment's key: its name in the store."""
        return key_of(self.identity(segment))

    def tensors(self, segment: Segment) -> dict[str, tuple[str, list[int]]]:
        """Dtype and shape of every tensor in the segment's file."""
        tokens = len(segment.ids)
        codec = CODECS.get(self.format)
        dtype, packed = (codec.codes, codec.packed) if codec else (self.dtype, 1)
        shape = [2, self.kv_heads, tokens, self.head_dim // packed]
        tensors = {"surprisal": ("F32", [tokens])}
        tensors |= {layer_name(i): (DTYPES[dtype], shape) for i in range(self.layers)}
        if codec:
            tensors["key_scales"] = ("I8", [self.layers, self.kv_heads, self.head_dim])
            tensors["value_scales"] = ("I8", [self.layers, self.kv_heads, tokens])
        return tensors

    def identity(self, segment: Segment) -> dict[str, int | str]:
        """Everything that determines the segment's values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "dtype": DTYPES[self.dtype],
            "stored_as": self.format,
            "context": _context(segment),
            "ids": hashed(segment.ids),
        }


def _context(segment: Segment) -> str:
    """A hash of everything that the segment is computed behind."""
    tokens = hashed(segment.context)
    return tokens if segment.learned is None else f"{tokens} {segment.learned.identity}"


def layer_name(index: int) -> str:
    """The name of a layer's tensor in a segment file."""
    return f"layer.{index:03d}"
