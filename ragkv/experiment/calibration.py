"""A model's calibration: the options of the probe that suit it, found without labels, and kept in a file.

The best options are those with which a fused prefill's next token is closest to a full prefill's. They are searched for
on prompts made for the purpose, of RULER's variable tracking, the task for which most must be recomputed.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pandas as pd
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragkv.benchmarks.ruler import TINY, Ruler
from ragkv.experiment.items import make_item
from ragkv.experiment.profile import Profile
from ragkv.fusion.prefill import fused_prefill
from ragkv.loading.segments import Segments
from ragkv.models.load import embedded_models
from ragkv.prompt import Prompt
from ragkv.rag.chunk_context import ChunkContext
from ragkv.results.fidelity import kl_divergence
from ragkv.results.files import DamagedError, read_json, write_json
from ragkv.results.provenance import provenance
from ragkv.selectors import get_selector

OPTIONS = ["first_layer", "following", "hops", "threshold"]
DEFAULT = {name: getattr(get_selector("probe"), name) for name in OPTIONS}
SEED = 1_000_003  # no profile uses it
ADVICE = "run `ragkv calibrate MODEL` in the folder that holds params/"


def calibrate(
    model: PreTrainedModel, prompts: Sequence[Prompt], store: Segments, *, ratio: float = 0.02, progress: bool = False
) -> pd.DataFrame:
    """Compare the probe's next token with a full prefill's, over the options that depend on the model.

    Two rounds: every layer as `first_layer`, with and without `following`; then `hops` and `threshold` for the best of
    these.

    Parameters
    ----------
    prompts
        Other prompts than those that results are reported on; precomputed in `store`, behind what the probe is to be
        used with (`Prompt.behind`).
    ratio
        The probe's ratio.

    Returns
    -------
    DataFrame
        ``first_layer, following, hops, threshold``, and ``divergence``: the mean Kullback-Leibler divergence of the
        next token's distribution from the full prefill's, in nats; the best options first.
    """
    full_prefill = get_selector("full_prefill")
    expected = [fused_prefill(model, prompt, None, full_prefill).logits for prompt in prompts]

    def divergence(options: dict) -> float:
        probe = get_selector("probe", ratio=ratio, **options)
        total = 0.0
        for prompt, full in zip(prompts, expected, strict=True):
            fused = fused_prefill(model, prompt, store, probe).logits
            total += kl_divergence(full, fused).item()
        return total / len(prompts)

    rounds: list[dict] = [
        {"first_layer": range(model.config.num_hidden_layers), "following": (0, 1)},
        {"hops": (1, 2, 3, 4), "threshold": (0.0, 0.05, 0.15)},
    ]
    rows: list[dict] = []
    best: dict = DEFAULT
    for values in rounds:
        combinations = list(product(*values.values()))
        for combination in tqdm(combinations, "calibrate", unit="option", disable=not progress):
            options = best | dict(zip(values, combination, strict=True))
            already_tried = any(options.items() <= row.items() for row in rows)
            if not already_tried:
                rows.append(options | {"divergence": divergence(options)})
        rows.sort(key=lambda row: row["divergence"])
        best = {name: rows[0][name] for name in OPTIONS}
    return pd.DataFrame(rows)[[*OPTIONS, "divergence"]]


def calibration_prompts(name: str, tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> list[Prompt]:
    """Prompts of RULER's variable tracking, with a seed that no profile uses.

    Parameters
    ----------
    name
        The model's.
    length
        Tokens of a prompt.

    Raises
    ------
    ValueError
        Prompts of this length have fewer than two chunks, so reuse would lose nothing that the probe could repair.
    """
    tiny = name in embedded_models()
    task = "vt_3" if tiny else "vt"
    chunk_tokens = 64 if tiny else 512
    too_short = ValueError(
        f"prompts of {length} tokens do not have two chunks of {chunk_tokens} tokens, so reuse would lose nothing that "
        f"a probe could find: give a length of {8 * chunk_tokens}, say"
    )
    if length < 2 * chunk_tokens:
        raise too_short
    parameters = {
        "source": TINY if tiny else "generated",
        "tasks": {task: {"prompts": count, "lengths": [length], "seed": SEED}},
    }
    ruler = Ruler.model_validate(parameters)
    profile = Profile.model_validate(
        {
            "models": [name],
            "benchmarks": {"ruler": parameters},
            "methods": [{"selector": "probe"}],
            "chunk_tokens": chunk_tokens,
        }
    )
    examples, _ = ruler.examples(task, tokenizer, Path())
    prompts = [make_item(tokenizer, example, ruler.task(task), profile).prompt for example in examples]
    if min(len(prompt.chunks) for prompt in prompts) < 2:
        raise too_short
    return prompts


def calibration_file(root: Path, folder: str) -> Path:
    """Where profiles look for a model's calibration; `folder` is the name of the model's folder of results."""
    return root / "params" / "calibration" / f"{folder}.json"


def write_calibration(path: Path, model: PreTrainedModel, table: pd.DataFrame, chunk_context: ChunkContext) -> None:
    """Keep the best options for this model, what they were compared with, and what chunks were computed behind."""
    compared = table.to_dict("records")
    best = {name: value for name, value in compared[0].items() if name != "divergence"}
    learned = chunk_context.context
    behind = {"context": None if learned is None else learned.identity, "prefix": chunk_context.behind_prefix}
    write_json(path, {"options": best, "compared": compared, "behind": behind, "provenance": provenance(model)})


def read_calibration(path: Path, weights: str) -> dict:
    """The options that were found for a model.

    Parameters
    ----------
    weights
        The model's fingerprint.

    Raises
    ------
    ValueError
        There is no such file, or it was made for another model.
    """
    if not path.exists():
        raise ValueError(no_calibration(path))
    try:
        calibration = read_json(path, "")
        options = dict(calibration["options"])
        made_for = str(calibration["provenance"]["model"])
    except (DamagedError, KeyError, TypeError, ValueError):
        raise ValueError(f"{path} is not a calibration: {ADVICE}") from None
    if made_for != weights:
        raise ValueError(
            f"{path} was made for another model ({made_for[:12]}..., this one is {weights[:12]}...): {ADVICE}"
        )
    return options


def no_calibration(path: Path) -> str:
    """What to say where a calibration does not exist."""
    return f"there is no calibration {path}: {ADVICE}"
