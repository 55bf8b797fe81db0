"""Profiles, evaluation and results on disk."""

import json
from pathlib import Path
from shutil import rmtree

import pandas as pd
import pytest
from profiles import run, without_times, write_profile

from ragkv import KVStore, fused_prefill, precompute
from ragkv.experiment import evaluation, prompt_loop
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.experiment.items import write_items
from ragkv.experiment.methods import depends_on, identity
from ragkv.experiment.profile import MethodParameters, StoreParameters
from ragkv.fusion.decoding import decode
from ragkv.fusion.workspace import Workspace
from ragkv.models.fingerprint import fingerprint
from ragkv.models.segment_pass import compute_segment
from ragkv.results.comparison import interval, scores_by_task, summarise
from ragkv.results.files import read_rows, write_json, write_rows
from ragkv.results.partial import append_rows, rows_so_far
from ragkv.selectors import get_selector


def ruler(tasks):
    return {"benchmarks": {"ruler": {"source": "tiny", "tasks": tasks}}}


def test_rows_cover_every_prompt_method_and_ratio(ready, tiny):
    rows = run(ready, tiny)
    assert len(rows) == 3 * (1 + 1 + 2)
    assert not rows.duplicated(["prompt", "method", "ratio"]).any()
    for row in rows.itertuples():
        question = row.prompt_tokens - row.document_tokens - 7  # seven tokens of prefix
        prefix = 7 if row.method == "full_prefill" else 0
        assert len(row.recomputed) == int(row.ratio * row.document_tokens) + question + prefix
        assert 0 <= row.load + row.select <= row.ttft
    written = pd.read_parquet(ready.outputs.rows("ruler", "vt_1"))
    assert written["prediction"].tolist() == rows["prediction"].tolist()
    summary = json.loads(ready.outputs.summary("ruler", "vt_1").read_text())
    assert {"torch", "transformers", "device", "commit", "model"} <= set(summary["provenance"])
    assert len(summary["summary"]) == len(summarise(rows)) == 4


def test_the_same_parameters_give_the_same_table(ready, tiny):
    first, second = (without_times(run(ready, tiny)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)


def test_an_evaluation_interrupted_behind_its_last_prompt_is_finished(ready, tiny, monkeypatch):

    whole = without_times(run(ready, tiny))

    def interrupted(path, rows):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "write_rows", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(ready, tiny)
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)  # nothing may be computed
    again = evaluate(ready, "ruler", "vt_1", *tiny, progress=False)
    pd.testing.assert_frame_equal(without_times(again), whole)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_evaluation_goes_on_where_it_stopped(ready, tiny, monkeypatch, after):

    whole = without_times(run(ready, tiny))
    real, calls = prompt_loop.append_rows, []

    def interrupted(path, rows):
        if len(calls) == after:
            with path.open("a") as file:
                file.write('{"prompt": "vt_1-256-00')  # a line cut off by the interruption
            raise KeyboardInterrupt
        calls.append(path)
        real(path, rows)

    monkeypatch.setattr(prompt_loop, "append_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(ready, tiny)
    resumed = []
    monkeypatch.setattr(prompt_loop, "append_rows", lambda path, rows: (resumed.extend(rows), real(path, rows)))
    again = evaluate(ready, "ruler", "vt_1", *tiny, progress=False)
    pd.testing.assert_frame_equal(without_times(again), whole)
    assert len(resumed) == (3 - after) * 4


def test_rows_of_other_parameters_are_not_mixed_in(ready, tiny, monkeypatch):
    def of(experiment, weights="w", dtype="torch.float32"):
        return identity(depends_on(experiment, "ruler", "vt_1", weights, dtype))

    def changed(**changes):
        return ready.model_copy(update={"profile": ready.profile.model_copy(update=changes)})

    def with_ruler(**changes):
        return changed(benchmarks={"ruler": ready.profile.benchmark("ruler").model_copy(update=changes)})

    task = ready.parameters("ruler", "vt_1").model_copy(update={"max_new_tokens": 5})
    others = [
        of(ready, weights="other"),
        of(ready, dtype="torch.bfloat16"),
        of(changed(methods=ready.profile.methods[:1])),
        of(changed(chunk_tokens=32)),
        of(with_ruler(tasks={"vt_1": task})),
        of(with_ruler(max_tokens=2000)),
    ]
    same = of(ready)
    assert same == of(ready) == of(changed(store=StoreParameters(url="elsewhere"), models=["tiny-llama", "tiny-qwen"]))
    with monkeypatch.context() as patch:
        patch.setattr("ragkv.experiment.methods.__version__", "0.0.0")
        others.append(of(ready))
    items = ready.items("ruler", "vt_1")
    write_items(ready.outputs.prompts("ruler", "vt_1"), items[:2], [])
    others.append(of(ready))
    assert len({same, *others}) == 1 + len(others)


def test_a_note_does_not_make_another_evaluation(ready, tiny, monkeypatch):
    run(ready, tiny)
    noted = write_profile(ready.root, note="Two evaluations shared the machine.")
    assert noted.profile.note != ready.profile.note
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)  # nothing is computed again
    assert len(evaluate(noted, "ruler", "vt_1", *tiny, progress=False)) > 0


def test_other_options_of_a_calibration_are_another_evaluation(ready):
    probe = MethodParameters(selector="probe", calibrated=True)
    experiment = ready.model_copy(update={"profile": ready.profile.model_copy(update={"methods": [probe]})})
    identities = set()
    for first_layer in (0, 1):
        write_json(experiment.calibration, {"options": {"first_layer": first_layer}, "provenance": {"model": "w"}})
        identities.add(identity(depends_on(experiment, "ruler", "vt_1", "w", "torch.float32")))
    assert len(identities) == 2


def test_what_is_finished_is_read_again(ready, tiny, monkeypatch):

    first = run(ready, tiny)
    monkeypatch.setattr(prompt_loop, "fused_prefill", None)  # nothing may be computed
    pd.testing.assert_frame_equal(evaluate(ready, "ruler", "vt_1", *tiny, progress=False), first)
    monkeypatch.undo()
    write_profile(ready.root, methods=[{"selector": "full_reuse"}])
    other = Experiment.load("p", root=ready.root)
    assert set(evaluate(other, "ruler", "vt_1", *tiny, progress=False)["method"]) == {"full_reuse"}


def test_read_ahead_gives_what_the_store_gives(ready, tiny):
    from ragkv.loading.prefetch import PrefetchingStore
    from ragkv.prompt import Segment
    from ragkv.store import Layout

    layout, segments = Layout.of(tiny[0]), ready.items("ruler", "vt_1")[0].prompt.segments(1)
    ahead = PrefetchingStore(ready.store(), layout)
    ahead.prefetch(segments)
    ahead.wait()
    for segment in segments:
        read, stored = ahead.open(layout, segment), ready.store().open(layout, segment)
        assert all((read.layer(i) == stored.layer(i)).all() for i in range(layout.layers))
        assert (read.surprisal() == stored.surprisal()).all()
    unknown = Segment((5, 6))
    ahead.prefetch([unknown])
    with pytest.raises(KeyError):
        ahead.open(layout, unknown)


def test_in_a_workspace_all_methods_give_the_same_rows(ready, tiny, monkeypatch):
    """Also where chunks are computed and stored in several ways, and something is evicted."""
    methods = [
        {"selector": "full_prefill"},
        {"selector": "full_reuse", "offline": {"context": "prefix"}},
        {"selector": "a3", "label": "similar", "offline": {"context": "similar", "format": "int8"}},
        {"selector": "probe"},
        {"selector": "epic", "eviction": {"name": "streaming", "capacity_ratio": 0.5}},
    ]
    experiment = write_profile(ready.root, methods=methods)
    experiment.precompute(tiny[0])
    expected = without_times(run(experiment, tiny))
    made = []

    def workspace(model, tokens, backend):
        assert (model, backend) == (tiny[0], "auto")
        made.append(Workspace(model, tokens))
        return made[-1]

    monkeypatch.setattr(Workspace, "if_faster", workspace)
    prefills = []

    def prefill(*args, real=prompt_loop.fused_prefill, **options):
        prefills.append(real(*args, **options))
        return prefills[-1]

    monkeypatch.setattr(prompt_loop, "fused_prefill", prefill)
    pd.testing.assert_frame_equal(without_times(run(experiment, tiny)), expected)
    (only,) = made
    longest = max(len(item.prompt.ids) for item in experiment.items("ruler", "vt_1"))
    assert only.memory.tokens == longest + experiment.parameters("ruler", "vt_1").max_new_tokens
    assert len(prefills) == 1 + len(expected)  # the first one is the warm-up
    assert all(prefill.workspace is only for prefill in prefills)


@pytest.mark.parametrize("shard", [None, "0/2", "1/2"])
def test_the_workspace_of_every_shard_has_room_for_the_longest_prompt_of_all(ready, tiny, monkeypatch, shard):
    """The same size for all of them: kernels may round otherwise in another one."""
    sizes = []
    monkeypatch.setattr(Workspace, "if_faster", lambda model, tokens, backend: sizes.append(tokens))
    evaluate(ready, "ruler", "vt_1", *tiny, shard=shard, progress=False)
    assert sizes == [max(len(item.prompt.ids) for item in ready.items("ruler", "vt_1")) + 4]


def test_a_prompt_is_read_once_for_all_methods(ready, tiny, monkeypatch):
    opened = []

    def open_stored(self, layout, segment, real=KVStore.open):
        opened.append(segment)
        return real(self, layout, segment)

    monkeypatch.setattr(KVStore, "open", open_stored)
    run(ready, tiny)
    prompts = [item.prompt for item in ready.items("ruler", "vt_1")]
    needed = [segment for prompt in prompts for segment in prompt.segments(1)]
    assert len(opened) == len(set(opened)) == len(set(needed))


def test_an_answer_ends_at_the_stop_text(ready, tiny, monkeypatch):
    """The task's stop text ends decoding, as LongBench's samsum wants it."""
    from dataclasses import replace

    from ragkv.benchmarks.ruler import Ruler

    free = run(ready, tiny)
    first = free.loc[free["method"] == "full_prefill", "prediction"].iloc[0]
    monkeypatch.setattr(Ruler, "task", lambda self, name, real=Ruler.task: replace(real(self, name), stop=first[-1]))
    cut = run(ready, tiny)
    assert cut.loc[cut["method"] == "full_prefill", "prediction"].iloc[0] == first
    assert (cut["prediction"].str.len() <= free["prediction"].str.len()).all()


def rows_of(scores):
    """Rows of two methods, a score per prompt each."""
    return pd.DataFrame(
        {
            "prompt": f"p{i}",
            "method": method,
            "ratio": ratio,
            "score": score,
            "ttft": 1.0,
            "tpot": None,
            "length": i % 2,
        }
        for (method, ratio), values in scores.items()
        for i, score in enumerate(values)
    )


def test_summary_compares_prompt_by_prompt():
    rows = rows_of({("full_prefill", 1.0): [1, 1, 0, 1], ("a3", 0.1): [1, 0, 0, 1], ("a3", 0.5): [1, 1, 0, 1]})
    table = summarise(rows).set_index(["method", "ratio"])
    assert table["score"].tolist() == [0.75, 0.5, 0.75]
    assert table.loc[("a3", 0.1), "difference"] == -0.25
    assert table.loc[("a3", 0.5), ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all()
    by_length = summarise(rows, by=["length"])
    assert by_length.loc[(by_length["length"] == 0) & (by_length["ratio"] == 0.1), "score"].item() == 0.5
    assert len(by_length) == 6


def test_interval_is_that_of_the_mean():
    """Against the normal approximation, which holds for many values."""
    import numpy as np

    values = np.random.default_rng(1).normal(3, 2, size=2000)
    found = interval(values)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert found["mean"] == pytest.approx(values.mean())
    assert found["mean_low"] == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert found["mean_high"] == pytest.approx(values.mean() + error, abs=0.2 * error)
    assert interval(values) == found
    assert np.isnan(interval(np.array([]))["mean"])


def test_scores_by_task_and_length():
    one, two = rows_of({("a3", 0.1): [1, 0, 1, 0], ("tail", 0.1): [0, 0, 0, 1]}), rows_of({("a3", 0.1): [1, 1]})
    table = scores_by_task({"one": one, "two": two}, "length")
    assert table.index.tolist() == [("a3", 0.1)]  # what every task was run with
    assert table.loc[("a3", 0.1)].to_dict() == {
        "one, 0": 1.0, "one, 1": 0.0, "two, 0": 1.0, "two, 1": 1.0, "average": 0.75
    }  # fmt: skip


def test_a_cut_off_line_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"a": 1}, {"a": 2}])
    whole = path.read_text()
    first, second = whole.splitlines()
    for damaged in (whole + '{"row": {"a"', f'{first}\n{{"row": {{"a"\n{second}\n', f"{first}\n\n{second}"):
        path.write_text(damaged)
        assert rows_so_far(path) == [{"a": 1}, {"a": 2}]
        assert path.read_text() == damaged


def test_a_changed_row_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"a": 1}, {"a": 2}])
    path.write_text(path.read_text().replace('{"a": 2}', '{"a": 3}'))
    assert rows_so_far(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"benchmarks": {"none": {}}}, "choose one of longbench, needle, ruler"),
        (ruler({"vt_9": {}}), "vt_3"),
        (ruler({"vt_1": {"prompts": 0}}), "ruler: tasks.vt_1.prompts"),
        (
            ruler({"vt_1": {"prompts": True}}),
            "ruler: tasks.vt_1: prompts is True: true and false are not what it takes",
        ),
        (ruler({"vt_1": {"lengths": [True]}}), "lengths is [True]"),
        (ruler({"vt_1": {"ratios": [1.5]}}), "from 0 to 1"),
        (ruler({"vt_1": {"promts": 1}}), "tasks.vt_1.promts: there is no such parameter"),
        ({"methods": [{"selector": "best"}]}, "cacheblend"),
        ({"methods": [{"selector": "a3", "options": {"kernl": 3}}]}, "kernel"),
        ({"methods": [{"selector": "a3"}, {"selector": "a3", "options": {"layer": 2}}]}, "label"),
        ({"chunk_size": 64}, "there is no such parameter"),
        ({"methods": [{"selector": "a3", "offline": {"context": "everything"}}]}, "methods.0.offline.context"),
        ({"methods": [{"selector": "a3", "offline": {"format": "fp4"}}]}, "methods.0.offline.format"),
        ({"extends": "p"}, "in a circle, p -> p"),
        ({"extends": "q"}, "no profile 'q'"),
    ],
)
def test_bad_parameters_are_named(tmp_path, changes, said):
    with pytest.raises(ValueError) as error:
        write_profile(tmp_path, **changes)
    assert "\n" not in str(error.value)
    assert "p.yaml" in str(error.value) or "no profile" in str(error.value)
    assert said in str(error.value)


def test_unknown_profile_model_and_task_name_what_there_is(tmp_path):
    experiment = write_profile(tmp_path)
    with pytest.raises(ValueError, match="there are p"):
        Experiment.load("q", root=tmp_path)
    with pytest.raises(ValueError, match="tiny-llama"):
        Experiment.load("p", model="gpt", root=tmp_path)
    with pytest.raises(ValueError, match="vt_1"):
        experiment.rows("ruler", "vt_2")
    with pytest.raises(ValueError, match="choose one of ruler"):
        experiment.rows("needle", "single")
    with pytest.raises(FileNotFoundError, match="01_chunking"):
        experiment.items("ruler", "vt_1")
    with pytest.raises(FileNotFoundError, match="of the benchmark ruler for the task 'vt_1'"):
        experiment.rows("ruler", "vt_1")


def test_options_of_single_models(tmp_path):
    method = {"selector": "probe", "options": {"hops": 2}, "options_by_model": {"tiny-qwen": {"first_layer": 2}}}
    profile = write_profile(tmp_path, models=["tiny-llama", "tiny-qwen"], methods=[method]).profile
    llama, qwen = (profile.methods[0].selectors([0.1], model)[0] for model in profile.models)
    assert (llama.hops, llama.first_layer) == (2, 0)
    assert (qwen.hops, qwen.first_layer) == (2, 2)
    with pytest.raises(ValueError, match="probe has options for tiny-qwen: not in models"):
        write_profile(tmp_path, methods=[method])
    with pytest.raises(ValueError, match=r"has no option layr"):
        write_profile(tmp_path, methods=[method | {"options_by_model": {"tiny-llama": {"layr": 2}}}])


def test_a_calibrated_method_takes_the_options_of_its_models_file(tmp_path, tiny):
    method = {"selector": "probe", "calibrated": True, "ratios": [0.1]}
    experiment = write_profile(tmp_path, methods=[method])
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    with pytest.raises(ValueError, match="there is no calibration"):
        evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)
    recomputed = []
    for options in ({"first_layer": 0, "hops": 1}, {"first_layer": 7, "hops": 1}):
        write_json(experiment.calibration, {"options": options, "provenance": {"model": fingerprint(tiny[0])}})
        rows = evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)
        recomputed.append([list(positions) for positions in rows["recomputed"]])
    assert recomputed[0] != recomputed[1]


def test_an_eviction_in_a_profile(tmp_path, tiny):
    snapkv = {"name": "snapkv", "capacity_ratio": 0.5}
    methods = [{"selector": "a3"}, {"selector": "a3", "label": "a3, half", "eviction": snapkv}]
    experiment = write_profile(tmp_path, methods=methods)
    experiment.chunk(tiny[1])
    experiment.precompute(tiny[0])
    rows = evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)
    whole, half = (rows[rows["method"] == name].reset_index(drop=True) for name in ("a3", "a3, half"))
    assert (whole["cache_tokens"] == whole["prompt_tokens"]).all()
    assert (half["cache_tokens"] == half["prompt_tokens"] // 2).all()
    ratio = half["cache_bytes"] / whole["cache_bytes"]
    assert ratio.tolist() == (half["cache_tokens"] / whole["cache_tokens"]).tolist()
    for broken, said in (({"capacity": 5}, "an eviction needs a name"), ({"name": "snapkv"}, "either capacity")):
        with pytest.raises(ValueError, match=said):
            write_profile(tmp_path, methods=[{"selector": "a3", "eviction": broken}])


def test_methods_with_chunks_computed_and_stored_otherwise(tmp_path, tiny):
    others = [
        {"context": "prefix"},
        {"context": "similar"},
        {"format": "fp8"},
        {"context": "similar", "format": "int4"},
    ]
    methods = [{"selector": "full_reuse"}] + [
        {"selector": "full_reuse", "label": f"reuse {n}", "offline": o} for n, o in enumerate(others)
    ]
    experiment = write_profile(tmp_path, methods=methods)
    experiment.chunk(tiny[1])
    done = experiment.precompute(tiny[0])
    assert done.written > 0
    assert experiment.precompute(tiny[0]).written == 0
    rows = evaluate(experiment, "ruler", "vt_1", *tiny, progress=False)
    sizes = rows.groupby("method", sort=False)["stored_bytes"].mean()
    assert sizes["reuse 0"] == sizes["reuse 1"] == sizes["full_reuse"]
    assert 0.25 < sizes["reuse 2"] / sizes["full_reuse"] < 0.27  # float32 here: a byte for four
    assert 0.12 < sizes["reuse 3"] / sizes["full_reuse"] < 0.15
    prompt = experiment.items("ruler", "vt_1")[0].prompt
    for method in experiment.profile.methods:  # each row is what a prefill from such a store gives
        placed, store = method.offline.prompt(prompt, 1), KVStore(f"memory://{tmp_path}", format=method.offline.format)
        precompute(tiny[0], [placed], store)
        prefill = fused_prefill(tiny[0], placed, store, get_selector("full_reuse"))
        row = rows[(rows["method"] == method.name) & (rows["prompt"] == experiment.items("ruler", "vt_1")[0].id)]
        text = tiny[1].decode(decode(tiny[0], prefill, max_new_tokens=4).ids, skip_special_tokens=True)
        assert text.startswith(row["prediction"].iloc[0])


def test_segments_that_are_not_kept_give_the_same_rows(tmp_path, tiny):
    """They are computed before each prompt is answered, and no store is made."""
    methods = [
        {"selector": "full_prefill"},
        {"selector": "full_reuse", "label": "reuse", "offline": {"context": "prefix"}},
        {"selector": "full_reuse", "label": "similar", "offline": {"context": "similar"}},
        {"selector": "surprisal"},
    ]
    kept = write_profile(tmp_path, methods=methods)
    kept.chunk(tiny[1])
    kept.precompute(tiny[0])
    expected = without_times(run(kept, tiny)).drop(columns="stored_bytes")  # files have headers, too
    rmtree(kept.outputs.store)

    experiment = write_profile(tmp_path, methods=methods, store={"keep": False})
    assert experiment.precompute(tiny[0]).segments == 0
    rows = without_times(run(experiment, tiny))
    pd.testing.assert_frame_equal(rows.drop(columns="stored_bytes"), expected)
    assert not Path(experiment.outputs.store).exists()
    prompt = experiment.items("ruler", "vt_1")[0].prompt
    ahead = experiment.read_ahead(tiny[0])
    sizes = [ahead.size(segment) for segment in set(prompt.segments(1))]
    assert sizes == [compute_segment(tiny[0], segment)[0].nbytes for segment in set(prompt.segments(1))]


def test_segments_that_are_not_kept_have_no_format(tmp_path):
    methods = [{"selector": "full_reuse", "offline": {"format": "fp8"}}]
    with pytest.raises(ValueError, match=r"full_reuse: a profile that keeps no segments .* as fp8"):
        write_profile(tmp_path, methods=methods, store={"keep": False})


def test_a_profile_that_extends_another_changes_what_it_says(tmp_path):
    base = write_profile(tmp_path).profile
    (tmp_path / "params" / "q.yaml").write_text("extends: p\nchunk_tokens: 32\n")
    changed = Experiment.load("q", root=tmp_path).profile
    assert changed.chunk_tokens == 32
    assert changed == base.model_copy(update={"chunk_tokens": 32})


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    write_rows(path, pd.DataFrame({"a": [1]}))

    def full(path, content, flags=0):
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ragkv.results.files.append", full)
    with pytest.raises(OSError, match="disk is full"):
        write_rows(path, pd.DataFrame({"a": [2]}))
    monkeypatch.undo()
    assert read_rows(path, "")["a"].tolist() == [1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.parquet", "rows.parquet.checksum"]
