"""``ragkv run PROFILE``: all of a profile in this process, without Snakemake and notebooks, up to its report."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from transformers import PreTrainedModel

from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.finished import made_from_present_rows, unfinished
from ragkv.experiment.inspection import look_at
from ragkv.experiment.oracle import write_oracle
from ragkv.experiment.steps import ORACLE_PROMPTS, close_up, precompute_step
from ragkv.report import write_index, write_report

Say = Callable[[str], object]


def run(
    profile: Annotated[str, typer.Argument(help="The name of a file in params/.")],
    model: Annotated[str | None, typer.Option(help="One of the profile's models; all of them by default.")] = None,
    root: Annotated[Path, typer.Option(help="The folder that holds params/ and outputs/.")] = Path("."),
) -> None:
    """Run all of a profile in this process, up to its report.

    What was finished with the same parameters is not run again; an interrupted run resumes where it stopped.
    """
    run_profile(profile, model=model, root=root, say=typer.echo)


def run_profile(profile: str, *, model: str | None = None, root: str | Path = ".", say: Say = print) -> Path | None:
    """Chunk, precompute, evaluate every task, look closely at one prompt, and write the report.

    Parameters
    ----------
    model
        One of the profile's models; None runs all of them.
    say
        Called with one line per step.

    Returns
    -------
    Path or None
        The report's page; None if results of the profile's other models do not exist yet.
    """
    everything = Experiment.load_all(profile, root=root)
    chosen = everything if model is None else [Experiment.load(profile, model=model, root=root)]
    for experiment in chosen:
        experiment.check_inputs()
    for experiment in chosen:
        _run_model(experiment, say)
    waiting = [experiment.model for experiment in everything if unfinished(experiment)]
    if waiting:
        say(f"report: not written, it needs results of {', '.join(waiting)} too")
        return None
    page = write_report(profile, root)
    index = write_index(root)
    say(f"report: {page} (all reports: {index})")
    return page


def _run_model(experiment: Experiment, say: Say) -> None:
    """All steps of one model."""

    def step(name: str, result: str) -> None:
        say(f"{experiment.model}: {name}: {result}")

    model, tokenizer = experiment.load_model()
    chunked = experiment.chunk(tokenizer)
    step("chunk", f"{chunked['prompts'].sum()} prompts of {len(chunked)} tasks, {chunked['skipped'].sum()} skipped")
    done = precompute_step(experiment, model, progress=True)
    step("precompute", f"{done.segments} segments, {done.written} computed now")
    for benchmark, task in experiment.tasks:
        rows = evaluate(experiment, benchmark, task, model, tokenizer)
        step(f"{benchmark}, {task}", f"{rows['prompt'].nunique()} prompts, {len(rows)} answers")
    _look_closely(experiment, model, step)


def _look_closely(experiment: Experiment, model: PreTrainedModel, step: Callable[[str, str], None]) -> None:
    """Selected tokens and oracle, unless they were made from the present rows."""
    outputs = experiment.outputs
    prompt = close_up(experiment)
    task = {"benchmark": prompt.benchmark, "task": prompt.task}
    if not made_from_present_rows(experiment, outputs.tokens, **task, ratio=prompt.ratio):
        look_at(experiment, **prompt._asdict(), model=model)
    step("selected tokens", f"prompt {prompt.number} of {prompt.benchmark}, {prompt.task}")
    if not made_from_present_rows(experiment, outputs.oracle, **task, prompts=ORACLE_PROMPTS):
        write_oracle(experiment, **task, model=model, prompts=ORACLE_PROMPTS)
    compared = min(ORACLE_PROMPTS, len(experiment.items(**task)))
    step("oracle", f"{compared} prompts of {prompt.benchmark}, {prompt.task}")
