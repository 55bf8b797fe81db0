"""``python workflow/scaling.py``: time an evaluation as a whole against the same evaluation in parallel shards.

The processes have loaded their model before. The time is that of the evaluation, and for shards also of the run that
joins their rows. Processor time is what the evaluation itself used, whatever else the machine did meanwhile.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import torch

from ragkv import load_model
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.results.files import write_json
from ragkv.results.provenance import provenance
from ragkv.shards import Shard

TASK = ("ruler", "vt_3")
TIMES = ["ttft", "tpot", "load", "select"]


def profile(model: str, prompts: int) -> dict:
    """A profile of one task, with three methods."""
    return {
        "models": [model],
        "chunk_tokens": 64,
        "benchmarks": {"ruler": {"source": "tiny", "tasks": {TASK[1]: {"prompts": prompts, "lengths": [1024]}}}},
        "methods": [{"selector": "full_prefill"}, {"selector": "full_reuse"}, {"selector": "a3"}],
        "device": "cpu",
    }


class Worker:
    """What each process keeps between evaluations."""

    @classmethod
    def start(cls, root: str) -> None:
        torch.set_num_threads(1)
        cls.experiment = Experiment.load("scaling", root=root)
        cls.loaded = load_model(cls.experiment.model, device="cpu")

    @classmethod
    def run(cls, shard: str | None) -> float:
        """Evaluate, and return the seconds of processor time that it took."""
        start = process_time()
        evaluate(cls.experiment, *TASK, *cls.loaded, shard=shard, progress=False)
        return process_time() - start


def measure(pool: ProcessPoolExecutor, experiment: Experiment, shards: int) -> dict[str, float]:
    """One evaluation from scratch: its seconds, and the processor seconds along its longest path."""
    for path in [experiment.outputs.summary(*TASK), *experiment.outputs.partials(*TASK, "*")]:
        path.unlink(missing_ok=True)
    parts = [str(shard) for shard in Shard.all(shards)] if shards > 1 else []
    start = perf_counter()
    processor = max(pool.map(Worker.run, parts), default=0.0)
    processor += pool.submit(Worker.run, None).result()
    return {"seconds": perf_counter() - start, "processor": processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures, with their provenance, to this JSON file")
    options = parser.parse_args()
    parameters = {name: value for name, value in vars(options).items() if name != "out"}
    with TemporaryDirectory() as root:
        (Path(root) / "params").mkdir()
        (Path(root) / "params/scaling.yaml").write_text(json.dumps(profile(options.model, options.prompts)))
        experiment = Experiment.load("scaling", root=root)
        model, tokenizer = load_model(options.model, device="cpu")
        experiment.chunk(tokenizer)
        experiment.precompute(model)
        spawn = multiprocessing.get_context("spawn")
        runs: dict[int, list[dict[str, float]]] = {1: [], options.shards: []}
        tables = {}
        with ProcessPoolExecutor(options.shards, spawn, Worker.start, (root,)) as pool:
            measure(pool, experiment, options.shards)  # all processes have started
            for number in range(options.repeats):
                for shards in runs if number % 2 else reversed(runs):
                    runs[shards].append(measure(pool, experiment, shards))
                    tables[shards] = experiment.rows(*TASK).drop(columns=TIMES)
                    print(f"{shards} of {options.shards}: {runs[shards][-1]}", flush=True)
    if not tables[1].equals(tables[options.shards]):
        raise SystemExit("the table of the shards differs from the table of the whole")
    whole, parts = ({key: median(run[key] for run in repeats) for key in repeats[0]} for repeats in runs.values())
    summary = {
        "rows": len(tables[1]),
        "same table": True,
        "whole": whole,
        "shards": parts,
        "seconds ratio": parts["seconds"] / whole["seconds"],
        "processor ratio": parts["processor"] / whole["processor"],
        "runs": {str(shards): repeats for shards, repeats in runs.items()},
        "cores": os.cpu_count(),
        "load average at the end": os.getloadavg(),
    }
    print(json.dumps(summary, indent=1))
    if options.out:
        write_json(options.out, summary | {"parameters": parameters, "provenance": provenance(model)})


if __name__ == "__main__":
    main()
