"""A small profile for tests, and its evaluation."""

import yaml

from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment

PROFILE = {
    "models": ["tiny-llama"],
    "chunk_tokens": 64,
    "benchmarks": {
        "ruler": {
            "source": "tiny",
            "tasks": {"vt_1": {"prompts": 3, "lengths": [256], "ratios": [0.1, 1.0], "max_new_tokens": 4}},
        }
    },
    "methods": [{"selector": "full_prefill"}, {"selector": "full_reuse"}, {"selector": "a3"}],
}


def write_profile(root, **changes):
    """Write the profile, with these keys changed, to ``params/p.yaml``; the experiment that it describes."""
    folder = root / "params"
    folder.mkdir(exist_ok=True)
    (folder / "p.yaml").write_text(yaml.safe_dump(PROFILE | changes))
    return Experiment.load("p", root=root)


def run(experiment, tiny):
    """Evaluate again even where the evaluation was finished before."""
    forget(experiment, "vt_1")
    return evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)


def forget(experiment, task):
    """Remove everything that an evaluation wrote."""
    for path in experiment.outputs.summary("ruler", task).parent.glob(f"{task}.*"):
        if not path.name.startswith(f"{task}.prompts"):
            path.unlink()


def without_times(rows):
    """What has to be the same on every run."""
    return rows.drop(columns=["ttft", "tpot", "load", "select"])
