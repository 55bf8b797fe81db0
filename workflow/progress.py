"""What `make reproduce` shows: a line for each step that ends, with the time left. All else goes to log files.

Snakemake takes this module for one of its logger plugins, see ``workflow/reproduce.py``.
"""

import re
import sys
from collections.abc import Callable, Mapping
from logging import WARNING, LogRecord
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from ragkv.planning import readable_time
from ragkv.terminal import printable

COLOURS = re.compile(r"\x1b\[[\d;]*m")
NO_STEP = {"all", "total"}  # Snakemake counts them, but they do nothing


class Steps:
    """The steps of a run: how many there are, and how long those that are left take.

    Parameters
    ----------
    counts
        The number of jobs by rule.
    expected
        Seconds of a job by rule. Where nothing is expected, all jobs count alike.
    clock
        Gives the time in seconds.
    """

    def __init__(
        self, counts: Mapping[str, int], expected: Mapping[str, float], clock: Callable[[], float] = monotonic
    ):
        self.counts = {rule: count for rule, count in counts.items() if rule not in NO_STEP}
        self.expected = expected
        self.clock = clock
        self.began = clock()
        self.finished: list[str] = []

    @property
    def total(self) -> int:
        """The number of steps."""
        return sum(self.counts.values())

    def seconds_left(self) -> float:
        """Seconds until the last step ends, if the others take as much longer than expected as the finished ones."""
        whole = sum(count * self.expected.get(rule, 1.0) for rule, count in self.counts.items())
        done = sum(self.expected.get(rule, 1.0) for rule in self.finished)
        return (self.clock() - self.began) * (whole - done) / done


class Job(NamedTuple):
    """A job that was started."""

    rule: str
    name: str
    began: float


class LogHandler(LogHandlerBase):
    """Turns Snakemake's events into lines on stderr."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = True
    needs_rulegraph = False

    def __post_init__(self) -> None:
        self.expected: Mapping[str, float] = {}
        self.steps = Steps({}, {})
        self.jobs: dict[int, Job] = {}
        self.failed = False

    def emit(self, record: LogRecord) -> None:
        try:
            for line in self.lines(record):
                print(printable(line), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)

    def lines(self, record: LogRecord) -> list[str]:
        """What to show of an event."""
        fields = record.__dict__
        event = fields.get("event")
        if "expected" in fields:  # the Snakefile says how long it expects jobs to take
            self.expected = fields["expected"]
        elif event == LogEvent.RUN_INFO:
            self.steps = Steps(fields["stats"], self.expected)
            if self.common_settings.dryrun:
                return [f"{count:4} {rule}" for rule, count in self.steps.counts.items()]
        elif event == LogEvent.JOB_INFO:
            rule = fields["rule_name"]
            self.jobs[fields["jobid"]] = Job(rule, _name(rule, fields["wildcards"] or {}), self.steps.clock())
        elif event == LogEvent.JOB_FINISHED:
            return self._finished(fields["job_id"])
        elif event == LogEvent.JOB_ERROR:
            return self._failed(fields["jobid"], fields["rule_name"], fields["log"])
        elif event is None or event == LogEvent.ERROR:
            return self._message(record)
        return []

    def _finished(self, number: int) -> list[str]:
        job = self.jobs[number]
        if job.rule in NO_STEP:
            return []
        steps = self.steps
        steps.finished.append(job.rule)
        done = len(steps.finished)
        took = readable_time(steps.clock() - job.began)
        left = f"about {readable_time(steps.seconds_left())} left" if done < steps.total else "all done"
        return [f"{done:{len(str(steps.total))}} of {steps.total}  {job.name} took {took}; {left}"]

    def _failed(self, number: int, rule: str, logs: list[str]) -> list[str]:
        self.failed = True
        name = self.jobs[number].name if number in self.jobs else rule
        reason = next(filter(None, map(_last_line, logs)), "see above")
        where = f" (all of it: {', '.join(logs)})" if logs else ""
        return [f"failed: {name}: {reason}{where}"]

    def _message(self, record: LogRecord) -> list[str]:
        """Errors and warnings of Snakemake in one line; not those of a failed job, which has a line of its own."""
        first, *more = [line for line in record.getMessage().splitlines() if line.strip()] or [""]
        if first.startswith("Nothing to be done"):
            return ["nothing to be done: every step is finished"]
        of_a_job = self.failed or any("CalledProcessError" in line for line in (first, *more))
        if record.levelno < WARNING or of_a_job:
            return []
        explanation = [line.strip() for line in more if not line.startswith("  File ")]
        kind = "error" if record.levelno > WARNING else "warning"
        return [f"{kind}: {' '.join(explanation) or first}"]


def _name(rule: str, wildcards: Mapping[str, str]) -> str:
    """What a job is called: its model, its rule and its shard."""
    parts = [wildcards.get("model"), rule.removesuffix("_shard"), wildcards.get("shard")]
    return ", ".join(part for part in parts if part)


def _last_line(log: str) -> str:
    """The last line that a job printed, which names its error."""
    try:
        lines = COLOURS.sub("", Path(log).read_text(errors="replace")).splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
