"""A model's shape: the sizes that time and memory depend on."""

from dataclasses import dataclass

from transformers import AutoConfig, PretrainedConfig

from ragkv.models.load import model_source

_8B = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
)
SHAPES = {  # models that can be planned with although none of their files are here
    "meta-llama/Meta-Llama-3-8B-Instruct": _8B | {"vocab_size": 128256},
    "meta-llama/Llama-3.1-8B-Instruct": _8B | {"vocab_size": 128256},
    "mistralai/Mistral-7B-Instruct-v0.2": _8B | {"vocab_size": 32000},
    "Qwen/Qwen2.5-7B-Instruct": dict(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "meta-llama/Meta-Llama-3-70B-Instruct": dict(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "Qwen/Qwen3-8B": dict(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=151936,
    ),
}


@dataclass(frozen=True)
class Shape:
    """The sizes that time and memory depend on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, model: str) -> "Shape":
        """From `SHAPES`, or else from the checkpoint's own configuration.

        Raises
        ------
        ValueError
            There is neither.
        """
        if model in SHAPES:
            return cls.of_config(PretrainedConfig(**SHAPES[model]))
        try:
            # False: code that comes with the model never runs, and nothing is asked on the terminal
            config = AutoConfig.from_pretrained(model_source(model), trust_remote_code=False)
        except (OSError, ValueError):
            raise ValueError(
                f"the shape of {model!r} is not known: its config.json can be read neither as a local folder nor "
                f"from the hub. Download it, or plan with one of {', '.join(SHAPES)}"
            ) from None
        return cls.of_config(config)

    @classmethod
    def of_config(cls, config: PretrainedConfig) -> "Shape":
        """The shape that a configuration describes."""
        heads = config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            config.intermediate_size,
            heads,
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """The number of weights in one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """The number of weights that are read for every new token."""
        return self.layers * self.layer_weights + self.hidden * self.vocabulary

    def weights_read(self, passes: int) -> int:
        """The number of weights that a prefill reads: the layers' in every pass, those of the logits once."""
        return self.weights + (passes - 1) * self.layers * self.layer_weights

    def bytes_per_token(self, size: float) -> float:
        """Bytes of a token's keys and values in all layers, `size` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * size

    def prefill(self, queries: float, keys: float, layers: float) -> float:
        """Floating-point operations of `layers` layers for the last `queries` of `keys` tokens, causally."""
        attended = keys - queries / 2  # keys per query, on average
        return layers * (2 * self.layer_weights * queries + 4 * self.heads * self.head_dim * queries * attended)
