"""What `make reproduce` shows of Snakemake's events: a line per finished step, and one line for an error."""

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from progress import LogHandler, Steps
from snakemake_interface_logger_plugins.common import LogEvent


def record(message="", level=logging.INFO, **extra):
    made = logging.makeLogRecord({"msg": message, "levelno": level})
    made.__dict__.update(extra)
    return made


@pytest.fixture
def handler():
    return LogHandler(SimpleNamespace(dryrun=False), None)


def started(handler, job, rule, **wildcards):
    handler.lines(record(event=LogEvent.JOB_INFO, jobid=job, rule_name=rule, wildcards=wildcards))


def test_a_finished_step_is_a_line_with_the_time_left(handler):
    handler.lines(record(expected={"precompute": 10.0, "evaluate_ruler": 30.0}))
    handler.lines(record(event=LogEvent.RUN_INFO, stats={"precompute": 1, "evaluate_ruler": 2, "all": 1, "total": 4}))
    now = 0.0
    handler.steps.clock = lambda: now
    handler.steps.began = 0.0
    started(handler, 7, "precompute", model="tiny-llama")
    now = 20.0
    assert handler.lines(record(event=LogEvent.JOB_FINISHED, job_id=7)) == [
        "1 of 3  tiny-llama, precompute took 20 seconds; about 2 minutes left"  # 2 * 30, which take twice as long
    ]
    started(handler, 8, "evaluate_ruler_shard", model="tiny-llama", shard="0-of-2")
    assert handler.jobs[8][:2] == ("evaluate_ruler_shard", "tiny-llama, evaluate_ruler, 0-of-2")
    started(handler, 9, "all")
    assert handler.lines(record(event=LogEvent.JOB_FINISHED, job_id=9)) == []


@given(st.dictionaries(st.text(), st.integers(1, 5), min_size=1), st.data())
def test_the_time_left_is_exact_if_steps_take_what_is_expected(counts, data):
    """Whatever the order in which they end, if one runs at a time; and also if all of them take thrice as long."""
    expected = {rule: data.draw(st.floats(0.5, 100)) for rule in counts}
    slower = data.draw(st.sampled_from([1.0, 3.0]))
    jobs = data.draw(st.permutations([rule for rule, count in counts.items() for _ in range(count)]))
    now = 0.0
    steps = Steps(counts, expected, clock=lambda: now)
    jobs = [rule for rule in jobs if rule in steps.counts]
    for number, rule in enumerate(jobs, 1):
        now += slower * expected[rule]
        steps.finished.append(rule)
        assert steps.seconds_left() == pytest.approx(slower * sum(expected[rule] for rule in jobs[number:]), abs=1e-6)


def test_a_failed_step_names_its_error_and_its_log(handler, tmp_path):
    log = tmp_path / "04_needle.log"
    log.write_text("Executing\n\x1b[31mMemoryError\x1b[0m: out of memory\n\n")
    started(handler, 3, "evaluate_needle", model="m")
    command = record('RuleException:\nCalledProcessError in file "/a", line 3:', logging.ERROR, event=LogEvent.ERROR)
    assert handler.lines(command) == []
    failed = record(event=LogEvent.JOB_ERROR, level=logging.ERROR, jobid=3, rule_name="evaluate_needle", log=[str(log)])
    assert handler.lines(failed) == [f"failed: m, evaluate_needle: MemoryError: out of memory (all of it: {log})"]
    assert handler.lines(record("Exiting because a job execution failed.", logging.ERROR)) == []


def test_an_error_of_the_workflow_is_one_line(handler):
    text = 'WorkflowError in file "/a/Snakefile", line 35:\nno profile \'x\': there are tiny\n  File "/a", line 3, in f'
    assert handler.lines(record(text, logging.ERROR, event=LogEvent.ERROR)) == ["error: no profile 'x': there are tiny"]
    assert handler.lines(record("Error: no such option", logging.ERROR)) == ["error: Error: no such option"]
    assert handler.lines(record("Using shell: /bin/bash")) == []
    assert handler.lines(record("Nothing to be done (all requested files are present).")) == [
        "nothing to be done: every step is finished"
    ]


def test_a_dry_run_counts_the_steps():
    handler = LogHandler(SimpleNamespace(dryrun=True), None)
    shown = handler.lines(record(event=LogEvent.RUN_INFO, stats={"chunking": 3, "all": 1, "total": 4}))
    assert shown == ["   3 chunking"]


def test_what_is_shown_cannot_act_upon_the_terminal(handler, capsys):
    handler.emit(record("\x1b]0;title\x07", logging.WARNING))
    assert capsys.readouterr().err == "warning: \\x1b]0;title\\x07\n"
