"""One model's part of a report."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from ragkv import figures
from ragkv.experiment.experiment import Experiment
from ragkv.report.benchmark import Rows, benchmark_section
from ragkv.report.conclusion import Compared, conclude
from ragkv.report.model_files import Drawing, ModelFiles, Source
from ragkv.report.tables import as_html
from ragkv.results.files import read_json


def section(experiment: Experiment, results: Mapping[str, Rows], compared: Mapping[str, Compared]) -> dict:
    """All values that the template needs of a model; its tables and figures are written.

    Parameters
    ----------
    results
        Rows by benchmark and task.
    compared
        All prompts of each benchmark.
    """
    files = ModelFiles(experiment)
    outputs = experiment.outputs
    tokens = read_json(outputs.tokens, "06_selected_tokens.ipynb")
    source = files.source(outputs.tokens, tokens["benchmark"], tokens["task"])
    tokenizer, problem = tokenizer_or_problem(experiment)
    return {
        "model": experiment.model,
        "name": files.name,
        "by_hand": files.by_hand,
        "conclusions": {name: _conclusion(one) for name, one in compared.items()},
        "no_text": problem,
        "benchmarks": [benchmark_section(files, name, rows, tokenizer) for name, rows in results.items()],
        "chunking": as_html(pd.DataFrame(read_json(outputs.chunking, "01_chunking.ipynb"))),
        "precompute": read_json(outputs.precompute, "02_precompute.ipynb"),
        "tokens": tokens | {"command": files.command(outputs.tokens)} | _drawings(files, tokens, source),
        "parameters": {"model": experiment.model}
        | experiment.profile.model_dump(exclude={"benchmarks", "methods", "models"}),
    }


def _conclusion(compared: Compared) -> dict:
    conclusion = conclude(compared)
    choices = conclusion["choices"]
    return conclusion | {"choices": None if choices is None else as_html(choices)}


def tokenizer_or_problem(experiment: Experiment) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The model's tokenizer, or why the documents of examples cannot be shown as text."""
    try:
        return experiment.load_tokenizer(), ""
    except (ImportError, OSError, ValueError) as error:
        return None, f"The documents are not shown, because the tokenizer could not be loaded: {error}"


def _drawings(files: ModelFiles, view: dict, source: Source) -> dict[str, Drawing]:
    """The figures of one prompt, token by token."""
    chunks, evidence = view["chunks"], view["evidence"]
    title = f"{files.name}, prompt {view['prompt']}"
    at_ratio = f"{title}, at a ratio of {view['ratio']:.0%}"
    recomputed = figures.recomputed_tokens(view["selected"], view["document"], chunks, evidence, at_ratio)
    attention = figures.attention_map(
        np.array(view["attention"]), chunks, evidence, f"{title}, attention of the question"
    )
    return {
        "recomputed": files.drawing("recomputed", recomputed, source),
        "attention": files.drawing("attention", attention, source),
    }
