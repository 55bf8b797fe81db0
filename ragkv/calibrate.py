"""``python -m ragkv.calibrate MODEL``: from which layer on the probe should listen to a model's attention.

Nothing is labelled: the best layer is the one with which a fused prefill's next token is nearest to a full prefill's,
over prompts of RULER's variable tracking made for the occasion: the task for which most must be mended.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks.ruler import TINY, Ruler
from ragkv.fusion import fused_prefill
from ragkv.items import make_item
from ragkv.loading import Segments
from ragkv.models import embedded_models, load_model
from ragkv.precompute import precompute
from ragkv.profile import Profile
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore


def calibrate(
    model: PreTrainedModel, prompts: Sequence[Prompt], store: Segments, *, ratio: float = 0.02, progress: bool = False
) -> pd.DataFrame:
    """How far the probe's next token is from a full prefill's, by the first layer that it listens to.

    Parameters
    ----------
    prompts
        Other ones than those that results are reported on; precomputed in `store`.

    Returns
    -------
    DataFrame
        ``first_layer``, and ``divergence``: the mean Kullback-Leibler divergence of the next token's distribution from
        the full prefill's, in nats; the best layer first.
    """
    layers = range(model.config.num_hidden_layers)
    divergence = torch.zeros(len(layers), dtype=torch.double)
    for prompt in tqdm(prompts, "calibrate", unit="prompt", disable=not progress):
        full = fused_prefill(model, prompt, None, get_selector("full_prefill")).logits.double().log_softmax(-1)
        for layer in layers:
            probe = get_selector("probe", ratio=ratio, first_layer=layer)
            found = fused_prefill(model, prompt, store, probe).logits.double().log_softmax(-1)
            divergence[layer] += (full.exp() * (full - found)).sum().item() / len(prompts)
    table = pd.DataFrame({"first_layer": layers, "divergence": divergence})
    return table.sort_values("divergence", kind="stable", ignore_index=True)


def calibration_prompts(name: str, tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> list[Prompt]:
    """Prompts of RULER's variable tracking, of a seed that no profile uses."""
    tiny = name in embedded_models()
    task = "vt_3" if tiny else "vt"
    parameters = {"prompts": count, "lengths": [length], "seed": 1_000_003}
    given = {"source": TINY if tiny else "generated", "tasks": {task: parameters}}
    ruler = Ruler.model_validate(given)
    profile = Profile.model_validate(
        {
            "models": [name],
            "benchmarks": {"ruler": given},
            "methods": [{"selector": "probe"}],
            "chunk_tokens": 64 if tiny else 512,
        }
    )
    examples, _ = ruler.examples(task, tokenizer, Path())
    return [make_item(tokenizer, example, ruler.task(task), profile).prompt for example in examples]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ragkv.calibrate", description="Find the probe's first layer.")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--length", type=int, help="tokens of a prompt (default: 1024 embedded, 4096 others)")
    parser.add_argument("--ratio", type=float, default=0.02)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, device=options.device)
    length = options.length or (1024 if options.model in embedded_models() else 4096)
    prompts = calibration_prompts(options.model, tokenizer, options.prompts, length)
    store = KVStore("memory://calibration")
    precompute(model, prompts, store)
    table = calibrate(model, prompts, store, ratio=options.ratio, progress=True)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    print(f"in a profile: {{selector: probe, options: {{first_layer: {table['first_layer'].iloc[0]}}}}}")


if __name__ == "__main__":
    main()
