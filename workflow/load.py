"""``python workflow/load.py``: processes that precompute and processes that evaluate share one store for minutes.

The writers go through the same prompts in the same order, so they often want the same segment at the same time. They
check what is stored, and rewrite one segment of each prompt while readers may be reading it. The readers answer prompts
whose segments are all stored. Afterwards every segment is checked, and answers are compared with those from a store
that only one process wrote. The first round has one writer and one reader, the second two of each.
"""

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import mean
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, sleep

import psutil
import torch
from transformers import PreTrainedModel

from ragkv import KVStore, Prompt, decode, fused_prefill, load_model, precompute
from ragkv.models.segment_pass import compute_segment
from ragkv.results.files import write_json
from ragkv.results.provenance import provenance
from ragkv.selectors import get_selector
from ragkv.store import Layout

PROMPTS = 1000
CHUNKS = 400
CHUNKS_OF_A_PROMPT = 4
TOKENS = 32  # of a chunk
COMPARED = 50  # answers that are computed again at the end


def prompt(number: int, vocabulary: int) -> Prompt:
    """One of the prompts; all of them draw their chunks from the same set."""

    def ids(name: str, count: int) -> list[int]:
        return Random(name).choices(range(10, vocabulary), k=count)

    chunks = Random(f"prompt {number}").sample(range(CHUNKS), CHUNKS_OF_A_PROMPT)
    return Prompt([], [ids(f"chunk {chunk}", TOKENS) for chunk in chunks], ids(f"question {number}", 8))


def answer(model: PreTrainedModel, prompt: Prompt, store: KVStore) -> tuple[list[int], str]:
    """The ids of an answer, and a hash of the logits of its first token."""
    prefill = fused_prefill(model, prompt, store, get_selector("a3"))
    logits = sha256(prefill.logits.numpy().tobytes()).hexdigest()
    return decode(model, prefill, max_new_tokens=4).ids, logits


def work(kind: str, number: int, url: str, name: str, seconds: float) -> dict:
    """One process until its time is over; returns its prompts, seconds, memory, and a reader's answers."""
    torch.set_num_threads(1)
    model, _ = load_model(name, device="cpu")
    store = KVStore(url)
    layout = Layout.of(model)
    rng = Random(f"{kind} {number}")
    memory: list[int] = []
    answers: dict[int, tuple] = {}
    done = 0
    start = perf_counter()
    processor = process_time()
    while perf_counter() - start < seconds:
        number_of_prompt = done % PROMPTS if kind == "precompute" else rng.randrange(PROMPTS)
        wanted = prompt(number_of_prompt, model.config.vocab_size)
        segments = wanted.segments(None)
        if kind == "precompute":
            precompute(model, [wanted], store)
            again = rng.choice(segments)
            store.write(layout, again, *compute_segment(model, again))
        elif store.missing(layout, segments):
            sleep(0.01)
            continue
        else:
            reply = answer(model, wanted, store)
            if number_of_prompt < COMPARED and answers.setdefault(number_of_prompt, reply) != reply:
                raise RuntimeError(f"prompt {number_of_prompt} was answered in two ways")
        done += 1
        memory.append(psutil.Process().memory_info().rss)
    used = {"seconds": perf_counter() - start, "processor": process_time() - processor}
    return {"kind": kind, "prompts": done, **used, "memory": memory, "answers": answers}


def side_by_side(processes: int, url: str, name: str, seconds: float) -> list[dict]:
    """Run this many processes of each kind at once; an error in one of them is raised here."""
    with ProcessPoolExecutor(2 * processes, multiprocessing.get_context("forkserver")) as pool:  # one import for all
        kinds = [(kind, number) for number in range(processes) for kind in ("precompute", "evaluate")]
        running = [pool.submit(work, kind, number, url, name, seconds) for kind, number in kinds]
        return [future.result() for future in running]


def rates(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Prompts by kind: how many, how many a second, and how many a second of processor time."""
    table = {}
    for kind in ("precompute", "evaluate"):
        mine = [run for run in runs if run["kind"] == kind]
        prompts = sum(run["prompts"] for run in mine)
        table[kind] = {
            "prompts": prompts,
            "per second": sum(run["prompts"] / run["seconds"] for run in mine),
            "per processor second": prompts / sum(run["processor"] for run in mine),
        }
    return table


def memory(run: dict) -> dict[str, float | int | str]:
    """Resident megabytes of one process, averaged over each tenth of its prompts."""
    samples, tenth = run["memory"], max(1, len(run["memory"]) // 10)
    tenths = [round(mean(samples[i : i + tenth]) / 1e6, 1) for i in range(0, tenth * 10, tenth) if samples[i:]]
    return {"kind": run["kind"], "prompts": len(samples), "megabytes by tenths": tenths}


def check(model: PreTrainedModel, store: KVStore, answers: list[dict[int, tuple]]) -> dict[str, int]:
    """Check that every stored segment is whole, and that answers equal those from a store that one process wrote.

    Raises
    ------
    RuntimeError
        A segment is damaged, or an answer differs.
    """
    layout, prompts = Layout.of(model), [prompt(number, model.config.vocab_size) for number in range(PROMPTS)]
    segments = list(dict.fromkeys(s for asked in prompts for s in asked.segments(None)))
    missing = set(store.missing(layout, segments))
    stored = [segment for segment in segments if segment not in missing]
    damaged = [segment for segment in stored if not store.check(layout, segment)]
    if damaged or sorted(map(layout.key, stored)) != store.keys():
        raise RuntimeError(f"{len(damaged)} of {len(stored)} segments are damaged, of {len(store.keys())} files")
    compared = 0
    for number in sorted({number for given in answers for number in given}):
        own = KVStore(f"memory://alone-{number}")
        precompute(model, [prompts[number]], own)
        expected = answer(model, prompts[number], own)
        for given in answers:
            if given.get(number, expected) != expected:
                raise RuntimeError(f"prompt {number} was answered otherwise than from a store of its own")
            compared += number in given
    return {"segments checked": len(stored), "answers compared": compared}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny-llama")
    parser.add_argument("--minutes", type=float, default=10, help="two of each; before, a fifth of it one of each")
    parser.add_argument("--store", help="an fsspec URL; by default a new folder, removed at the end")
    parser.add_argument("--out", type=Path, help="also write the figures, with their provenance, to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(options.model, device="cpu")
    with TemporaryDirectory() as folder:
        url, seconds = options.store or folder, options.minutes * 60
        one, two = (side_by_side(n, url, options.model, s) for n, s in ((1, seconds / 5), (2, seconds)))
        readers = [run["answers"] for run in (*one, *two) if run["kind"] == "evaluate"]
        checked = check(model, KVStore(url), readers)
    summary = {
        "errors": 0,  # any would have ended it
        **checked,
        "one of each": rates(one),
        "two of each": rates(two),
        "memory": [memory(run) for run in two],
        "cores": os.cpu_count(),
        "load average at the end": os.getloadavg(),
    }
    print(json.dumps(summary, indent=1))
    if options.out:
        given = {name: value for name, value in vars(options).items() if name not in ("out", "store")}
        write_json(options.out, summary | {"parameters": given, "provenance": provenance(model)})


if __name__ == "__main__":
    main()
