"""Shards: together they are the whole, each thing once, whatever was interrupted on the way."""

import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
from helpers import memory_store, random_ids
from hypothesis import given
from hypothesis import strategies as st
from profiles import forget, run, without_times

from ragkv import Prompt, precompute
from ragkv.experiment import prompt_loop
from ragkv.experiment.evaluation import evaluate, evaluate_tasks
from ragkv.results.partial import rows_so_far
from ragkv.shards import Shard
from ragkv.store import Layout

COUNTS = st.integers(1, 9)


@given(COUNTS, st.lists(st.integers()))
def test_every_thing_is_in_one_shard(count, things):
    parts = [shard.take(things) for shard in Shard.all(count)]
    assert Counter(thing for part in parts for thing in part) == Counter(things)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(COUNTS, st.binary(min_size=32, max_size=32))
def test_every_key_has_one_owner(count, key):
    assert sum(shard.owns(key.hex()) for shard in Shard.all(count)) == 1


def test_shards_are_named_and_read_again(tmp_path):
    for shard in Shard.all(3):
        assert Shard.parse(str(shard)) == shard
    assert Shard.parse(None) == Shard.parse("0/1") == Shard()
    assert Shard(1, 3).path(tmp_path / "vt_1.json") == tmp_path / "vt_1.1-of-3.json"
    assert Shard().path(tmp_path / "vt_1.json") == tmp_path / "vt_1.json"
    for wrong in ("2/2", "1", "-1/2", "1/0", "a/b", ""):
        with pytest.raises(ValueError, match=r"from '0/2' to '1/2'"):
            Shard.parse(wrong)


def test_shards_of_precompute_are_together_the_whole(llama, rng):
    corpus = [random_ids(rng, 9) for _ in range(20)]
    prompts = [Prompt([1, 5], rng.sample(corpus, 6), random_ids(rng, 3)) for _ in range(12)]
    ways = [prompts, [prompt.behind_prefix() for prompt in prompts]]  # the prefix is the same in both

    def run(store, shard):
        first, second = (precompute(llama, way, store, shard=shard) for way in ways)
        return replace(first + second, seconds=0)

    one, many = memory_store(), memory_store()
    whole = run(one, Shard())
    parts = [run(many, shard) for shard in Shard.all(3)]
    assert parts[0] + parts[1] + parts[2] == whole
    assert all(part.written for part in parts)
    assert many.keys() == one.keys()
    layout, segments = Layout.of(llama), {s for way in ways for prompt in way for s in prompt.segments(1)}
    assert all(many.check(layout, segment) for segment in segments)


def counted(monkeypatch, after=None):
    """The prompts whose rows are written from here on; the writing is interrupted `after` so many."""
    real, written = prompt_loop.append_rows, []

    def append(path, rows):
        if after is not None and len(written) == after:
            with path.open("a") as file:
                file.write('{"prompt": "vt_1-256-00')  # a line cut off by the interruption
            raise KeyboardInterrupt
        written.append(rows[0]["prompt"])
        real(path, rows)

    monkeypatch.setattr(prompt_loop, "append_rows", append)
    return written


def test_shards_of_an_evaluation_make_the_same_table(ready, tiny, monkeypatch):
    whole = without_times(run(ready, tiny))
    forget(ready, "vt_1")
    parts = [evaluate(ready, "ruler", "vt_1", *tiny, shard=shard, progress=False) for shard in ("1/2", "0/2")]
    assert [part["prompt"].nunique() for part in parts] == [1, 2]
    assert not ready.outputs.rows("ruler", "vt_1").exists()
    done = json.loads(Shard(0, 2).path(ready.outputs.summary("ruler", "vt_1")).read_text())
    assert done["prompts"] == 2
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)  # nothing is left to be computed
    together = evaluate(ready, "ruler", "vt_1", *tiny, progress=False)
    pd.testing.assert_frame_equal(without_times(together), whole)
    written = pd.read_parquet(ready.outputs.rows("ruler", "vt_1"))
    assert written.to_json() == together.to_json()
    again = evaluate(ready, "ruler", "vt_1", *tiny, shard="0/2", progress=False)  # its rows of the finished table
    assert again.to_json() == written[written["prompt"].isin(parts[1]["prompt"])].reset_index(drop=True).to_json()


def test_interrupted_shards_go_on_in_any_number(ready, tiny, monkeypatch):
    whole = without_times(run(ready, tiny))
    forget(ready, "vt_1")
    first = counted(monkeypatch, after=1)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ready, "ruler", "vt_1", *tiny, shard="0/2", progress=False)
    monkeypatch.undo()
    (left,) = ready.outputs.partials("ruler", "vt_1", "*")
    before = left.read_bytes()
    later = counted(monkeypatch)
    for shard in ("0/3", "1/3", "2/3"):
        evaluate(ready, "ruler", "vt_1", *tiny, shard=shard, progress=False)
    assert left.read_bytes() == before  # another shard's file, its last line cut off, is only read
    assert len(rows_so_far(left)) == 4
    assert Counter(first + later) == Counter(whole["prompt"].unique())  # each prompt once
    together = without_times(evaluate(ready, "ruler", "vt_1", *tiny, progress=False))
    assert len(first + later) == 3
    pd.testing.assert_frame_equal(together, whole)


def test_a_shard_without_prompts(ready, tiny):
    assert evaluate(ready, "ruler", "vt_1", *tiny, shard="3/4", progress=False).empty
    with pytest.raises(ValueError, match=r"shard 3/4 has no prompt; make at most 3 shards"):
        evaluate_tasks(ready, "ruler", *tiny, shard="3/4", progress=False)
    assert set(evaluate_tasks(ready, "ruler", *tiny, shard="2/4", progress=False)) == {"vt_1"}
