"""``python -m ragkv.calibrate MODEL``: from which layer on the probe should listen, and what it should take along.

Nothing is labelled: the best options are those with which a fused prefill's next token is nearest to a full prefill's,
over prompts of RULER's variable tracking made for the occasion: the task for which most must be mended.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks.ruler import TINY, Ruler
from ragkv.experiment.calibration import write_calibration
from ragkv.experiment.items import make_item
from ragkv.experiment.profile import Profile
from ragkv.fusion.prefill import fused_prefill
from ragkv.loading.segments import Segments
from ragkv.models.load import embedded_models, load_model
from ragkv.prompt import Prompt
from ragkv.selectors import get_selector
from ragkv.store import KVStore
from ragkv.store.precompute import precompute

ROUNDS = (  # what is tried together; the best goes on to the next round
    {"first_layer": None, "following": (0, 1)},  # None: every layer
    {"hops": (2, 3, 4), "threshold": (0.0, 0.05, 0.15)},
)


def calibrate(
    model: PreTrainedModel, prompts: Sequence[Prompt], store: Segments, *, ratio: float = 0.02, progress: bool = False
) -> pd.DataFrame:
    """How far the probe's next token is from a full prefill's, by the options that are the model's own.

    Parameters
    ----------
    prompts
        Other ones than those that results are reported on; precomputed in `store`.

    Returns
    -------
    DataFrame
        ``first_layer, following, hops, threshold``, and ``divergence``: the mean Kullback-Leibler divergence of the
        next token's distribution from the full prefill's, in nats; the best options first.
    """
    select = get_selector("full_prefill")
    full = [fused_prefill(model, prompt, None, select).logits.double().log_softmax(-1) for prompt in prompts]

    def divergence(options: dict) -> float:
        probe, total = get_selector("probe", ratio=ratio, **options), 0.0
        for prompt, expected in zip(prompts, full, strict=True):
            found = fused_prefill(model, prompt, store, probe).logits.double().log_softmax(-1)
            total += (expected.exp() * (expected - found)).sum().item()
        return total / len(prompts)

    best: dict = {"hops": 3, "threshold": 0.0}
    rows: list[dict] = []
    for tried in ROUNDS:
        values = [range(model.config.num_hidden_layers) if some is None else some for some in tried.values()]
        for combination in tqdm(list(product(*values)), "calibrate", unit="option", disable=not progress):
            options = best | dict(zip(tried, combination, strict=True))
            if not any(options.items() <= row.items() for row in rows):
                rows.append(options | {"divergence": divergence(options)})
        best = {name: value for name, value in min(rows, key=_divergence).items() if name != "divergence"}
    return pd.DataFrame(sorted(rows, key=_divergence))[["first_layer", "following", "hops", "threshold", "divergence"]]


def _divergence(row: dict) -> float:
    return row["divergence"]


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
    parser = argparse.ArgumentParser(prog="python -m ragkv.calibrate", description="Find the probe's options.")
    parser.add_argument("model")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--length", type=int, help="tokens of a prompt (default: 1024 embedded, 4096 others)")
    parser.add_argument("--ratio", type=float, default=0.02)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, help="also write what was found to this JSON file")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, device=options.device)
    length = options.length or (1024 if options.model in embedded_models() else 4096)
    prompts = calibration_prompts(options.model, tokenizer, options.prompts, length)
    store = KVStore("memory://calibration")
    precompute(model, prompts, store)
    table = calibrate(model, prompts, store, ratio=options.ratio, progress=True)
    print(table.to_string(index=False, float_format="{:.4f}".format))
    if options.out:
        write_calibration(options.out, model, table)


if __name__ == "__main__":
    main()
