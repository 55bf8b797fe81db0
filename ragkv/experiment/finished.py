"""Which results on disk are finished: whole, undamaged, and made with the profile's present parameters."""

import logging
from pathlib import Path

import pandas as pd

from ragkv.experiment.experiment import Experiment
from ragkv.experiment.methods import depends_on
from ragkv.results.files import damage, read_attrs, read_json, read_rows
from ragkv.results.outputs import Outputs

log = logging.getLogger("ragkv")


def finished_rows(outputs: Outputs, benchmark: str, task: str, identity: str) -> pd.DataFrame | None:
    """The table of a task, if an evaluation with this identity was finished. A damaged file is named in a warning."""
    rows = outputs.rows(benchmark, task)
    summary = outputs.summary(benchmark, task)
    if not (rows.exists() and summary.exists()):
        return None
    for path in (rows, summary):
        if problem := damage(path):
            log.warning("%s is damaged: %s. The task %s of %s is computed again", path, problem, task, benchmark)
            return None
    if not read_attrs(rows).get("identity") == read_json(summary, "").get("identity") == identity:
        return None
    return read_rows(rows, "")


def unfinished(experiment: Experiment) -> dict[Path, str]:
    """The results that the report needs of this model and that are not finished, each with the reason.

    Everything that can be known without loading the model is compared with the profile. The model's weights are not:
    all tables must be of the same ones.
    """
    outputs = experiment.outputs
    problems = {}
    weights = {}
    for task in experiment.tasks:
        if problem := _problem_of_task(experiment, *task):
            problems[outputs.rows(*task)] = problem
        else:
            weights[outputs.rows(*task)] = read_json(outputs.summary(*task), "")["depends"]["model"]
    if len(set(weights.values())) > 1:
        problems |= dict.fromkeys(weights, "the tables are of different weights of the model")
    for path in (outputs.chunking, outputs.precompute, outputs.tokens):
        if problem := _problem(path):
            problems[path] = problem
    if outputs.tokens not in problems and not made_from_present_rows(experiment, outputs.tokens):
        problems[outputs.tokens] = "it was made from other results than the present ones"
    return problems


def made_from_present_rows(experiment: Experiment, path: Path, **says: object) -> bool:
    """Whether a result is undamaged, was made from the present rows of a task of this profile, and says this."""
    if _problem(path):
        return False
    content = read_json(path, "")
    task = content.get("benchmark"), content.get("task")
    if task not in experiment.tasks or _problem(summary := experiment.outputs.summary(*task)):
        return False
    same = content.get("identity") == read_json(summary, "")["identity"]
    return same and {name: content.get(name) for name in says} == says


def damaged(experiment: Experiment) -> dict[Path, str]:
    """The results of this model that exist and are damaged, each with the reason."""
    outputs = experiment.outputs
    files = [outputs.chunking, outputs.precompute, outputs.tokens, outputs.oracle]
    for task in experiment.tasks:
        files += [outputs.prompts(*task), outputs.rows(*task), outputs.summary(*task)]
    problems = {path: damage(path) for path in files if path.exists()}
    return {path: problem for path, problem in problems.items() if problem}


def remove_partials(experiment: Experiment) -> None:
    """Remove the rows so far of finished tasks: all of them are in the tables."""
    outputs = experiment.outputs
    for task in experiment.tasks:
        identity = read_json(outputs.summary(*task), "").get("identity", "")
        for path in outputs.partials(*task, identity):
            path.unlink(missing_ok=True)


def _problem(path: Path) -> str | None:
    if not path.exists():
        return "it does not exist yet"
    problem = damage(path)
    return f"it is damaged: {problem}" if problem else None


def _problem_of_task(experiment: Experiment, benchmark: str, task: str) -> str | None:
    """Why a task's table cannot be shown; None if it was made with the profile's present parameters."""
    outputs = experiment.outputs
    rows = outputs.rows(benchmark, task)
    summary = outputs.summary(benchmark, task)
    for path in (rows, summary, outputs.prompts(benchmark, task)):
        if problem := _problem(path):
            return problem if path == rows else f"{path.name}: {problem}"
    content = read_json(summary, "")
    if read_attrs(rows).get("identity") != content.get("identity"):
        return f"it does not belong to {summary.name}"
    made_with = content.get("depends", {})  # an older version's summary has none
    try:
        present = depends_on(experiment, benchmark, task, made_with.get("model", ""), made_with.get("dtype", ""))
    except (ValueError, OSError) as error:
        return str(error)
    others = [name for name in present if present[name] != made_with.get(name)]
    return f"it was made with other {', '.join(others)}" if others else None
