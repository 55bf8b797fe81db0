"""``python -m ragkv.planning PROFILE``: what a profile would run, how long on a GPU, and how much the store will take.

An estimate from above: every prompt at its longest length, every answer at its longest. Prefills count floating-point
operations, decoding counts reading the weights once per token.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ragkv.experiment import Experiment
from ragkv.models import model_source as source
from ragkv.quantize import number_size
from ragkv.selectors import Selector
from ragkv.selectors.a3 import A3
from ragkv.selectors.probe import Probe

_8B = dict(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8
)
QUESTION = 32  # tokens of a question, about
SHAPES = {  # so that nothing needs to be there to plan with them
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
    """What time and memory depend on."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @classmethod
    def of(cls, model: str) -> "Shape":
        """From `SHAPES`, or the checkpoint's own configuration.

        Raises
        ------
        ValueError
            There is neither.
        """
        try:
            config = PretrainedConfig(**SHAPES[model]) if model in SHAPES else AutoConfig.from_pretrained(source(model))
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
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def weights(self) -> int:
        """Weights that are read for every new token."""
        return self.layers * self.layer_weights + self.hidden * self.vocabulary

    def weights_read(self, passes: int) -> int:
        """Weights that a prefill reads: the layers' once a pass, those of the logits once."""
        return self.weights + (passes - 1) * self.layers * self.layer_weights

    def bytes_per_token(self, size: float) -> float:
        """Of keys and values, `size` bytes a number."""
        return 2 * self.layers * self.kv_heads * self.head_dim * size

    def prefill(self, queries: float, keys: float, layers: float) -> float:
        """Floating-point operations of `layers` layers for `queries` tokens over `keys` tokens, causally."""
        seen = keys - queries / 2  # the queries stand at the end
        return layers * (2 * self.layer_weights * queries + 4 * self.heads * self.head_dim * queries * seen)


def selection(shape: Shape, selector: Selector, tokens: int, question: int = QUESTION) -> float:
    """Floating-point operations of choosing, at most; what is computed of layers up to the choice is not in them."""
    if isinstance(selector, Probe):
        looking = min(selector.looking, selector.ratio / selector.hops) * tokens
        rows = selector.hops * question + (selector.hops - 1) * looking  # of all passes
        return shape.layers * rows * (2 * shape.layer_weights + 4 * shape.heads * shape.head_dim * tokens)
    products = 2 * shape.heads * shape.head_dim * question * tokens if isinstance(selector, A3) else 0.0
    gaps = 3 * shape.kv_heads * shape.head_dim * tokens if selector.compares else 0.0
    return products + gaps


def fused(shape: Shape, selector: Selector, tokens: int, question: int = QUESTION) -> float:
    """Floating-point operations of a fused prefill of `tokens` tokens, the last `question` of which ask."""
    before = min(selector.layer, shape.layers)
    asked = min(tokens, question) if selector.recomputes_question else 1
    chosen = selector.ratio * (tokens - asked) + asked
    mended = 2 * shape.layer_weights * chosen + 4 * shape.heads * shape.head_dim * chosen * tokens / 2
    return shape.prefill(tokens, tokens, before) + selection(shape, selector, tokens) + (shape.layers - before) * mended


def hops(selector: Selector) -> int:
    """Passes of its own that a selector makes before it chooses."""
    return getattr(selector, "hops", 0)


def moved(shape: Shape, selector: Selector, tokens: int, size: int = 2) -> float:
    """Bytes that a fused prefill moves through the GPU's memory at least, `size` a number.

    The layers' weights once a pass, those of the logits once, the prompt's keys and values into their places, and once
    a pass out of them.
    """
    passes = 1 + hops(selector)
    placed = 2 if selector.reuses else 1  # read where they were stored, and written
    return size * shape.weights_read(passes) + (placed + passes) * tokens * shape.bytes_per_token(size)


def choosing(experiment: Experiment, benchmark: str, task: str, model: PreTrainedModel) -> pd.DataFrame:
    """What choosing takes at most in a task's longest prompt, by method and ratio: a share of a full prefill."""
    longest = max((item.prompt for item in experiment.items(benchmark, task)), key=lambda prompt: len(prompt.ids))
    shape, tokens, ratios = Shape.of(experiment.model), len(longest.ids), experiment.parameters(benchmark, task).ratios
    table = []
    full = shape.prefill(tokens, tokens, shape.layers)
    for method in experiment.profile.methods:
        for selector in experiment.selectors(method, ratios, model):
            share = selection(shape, selector, tokens, len(longest.question)) / full
            table.append({"method": method.name, "ratio": selector.ratio, "share": share})
    return pd.DataFrame(table, columns=["method", "ratio", "share"]).query("share > 0").reset_index(drop=True)


def plan(experiment: Experiment, tflops: float, bandwidth: float) -> pd.DataFrame:
    """A row per task of one model.

    Parameters
    ----------
    tflops, bandwidth
        What the GPU is assumed to reach: 1e12 floating-point operations, and 1e12 bytes, a second.

    Returns
    -------
    DataFrame
        ``benchmark, task, prompts, tokens`` (of the longest prompt), ``runs`` (answers), ``hours``, ``gigabytes``.
    """
    profile, shape = experiment.profile, Shape.of(experiment.model)
    size = 4 if profile.dtype == "float32" else 2
    table = []
    for name, task in experiment.tasks:
        benchmark, parameters = profile.benchmark(name), experiment.parameters(name, task)
        selectors = [s for method in profile.methods for s in method.selectors(parameters.ratios, experiment.model)]
        new = parameters.max_new_tokens or benchmark.task(task).max_new_tokens
        operations = seconds = stored = 0.0
        for prompts, tokens in benchmark.sizes(task):
            chunks = max(1.0, tokens / profile.chunk_tokens)
            passes = sum(1 + (way.similar if way.context == "similar" else 0) for way in profile.offline)
            offline = passes * chunks * shape.prefill(tokens / chunks, tokens / chunks, shape.layers)
            online = sum(fused(shape, selector, tokens) for selector in selectors)
            operations += prompts * (offline + online)
            seconds += prompts * len(selectors) * new * shape.weights * size / (bandwidth * 1e12)
            numbers = sum(number_size(way.format, size) for way in profile.offline)
            stored += prompts * tokens * shape.bytes_per_token(numbers)
        prompts = sum(count for count, _ in benchmark.sizes(task))
        table.append(
            {"benchmark": name, "task": task, "prompts": prompts, "tokens": max(t for _, t in benchmark.sizes(task))}
            | {"runs": prompts * len(selectors), "hours": (operations / (tflops * 1e12) + seconds) / 3600}
            | {"gigabytes": stored / 1e9}
        )
    return pd.DataFrame(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.planning", description="Estimate what a profile takes.")
    parser.add_argument("profile")
    parser.add_argument("--root", type=Path, default=Path())
    parser.add_argument("--tflops", type=float, default=400, help="assumed speed in prefill (default: %(default)s)")
    parser.add_argument(
        "--bandwidth", type=float, default=2.5, help="assumed memory bandwidth, TB/s (default: %(default)s)"
    )
    options = parser.parse_args()
    for model in Experiment.load(options.profile, root=options.root).profile.models:
        table = plan(
            Experiment.load(options.profile, model=model, root=options.root), options.tflops, options.bandwidth
        )
        print(f"\n{model}\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
        print(
            f"at most {table['hours'].sum():.1f} GPU-hours and {table['gigabytes'].sum():.0f} GB in the store,", end=" "
        )
        print(f"assuming {options.tflops:g} TFLOP/s and {options.bandwidth:g} TB/s (--tflops, --bandwidth)")


if __name__ == "__main__":
    main()
