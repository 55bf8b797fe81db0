"""Faults on purpose: jobs killed, disks full, bits flipped, files cut short, permissions lost, connections broken, ...

After each fault, running the same again must finish, use nothing damaged, lose and repeat no prompt, and give the
results of an undisturbed run. ``python tests/faults.py`` runs the long form, `test_faults` a short one.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import torch
import yaml

from ragkv import StoreError, fused_prefill, load_model
from ragkv.bench.store import s3_server
from ragkv.experiment.evaluation import evaluate
from ragkv.experiment.experiment import Experiment
from ragkv.results import files
from ragkv.results.files import DamagedError, damage, read_json, read_rows, write_json
from ragkv.results.partial import append_rows, rows_so_far
from ragkv.results.provenance import provenance
from ragkv.selectors import get_selector
from ragkv.store.collect import collect
from ragkv.store.verify import verify

TASK = ("ruler", "vt_1")
TIMES = ["ttft", "tpot", "load", "select"]
PROFILE = {
    "models": ["tiny-llama"],
    "chunk_tokens": 64,
    "benchmarks": {
        "ruler": {
            "source": "tiny",
            "tasks": {"vt_1": {"prompts": 5, "lengths": [256], "ratios": [0.1], "max_new_tokens": 2}},
        }
    },
    "methods": [{"selector": "full_reuse"}, {"selector": "a3"}],
}
FINISHED, CLEAR_ERROR = 0, 3  # exit codes of jobs
NOBODY = 65534  # a user


class Subject:
    """A small experiment, and its results when nothing disturbs it.

    Parameters
    ----------
    folder
        For all files.
    """

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        self.folder, (self.model, self.tokenizer) = folder, load_model("tiny-llama", device="cpu")
        self.reference = self.experiment("reference")
        self.reference.chunk(self.tokenizer)
        self.precompute(self.reference)
        self.rows = self.evaluate(self.reference)
        self.segments = stored(self.reference)
        self.writes_left = 0  # until a child kills itself, see `evaluate_until_a_write`

    def experiment(self, name: str, **store: object) -> Experiment:
        """The experiment in a new root, with the reference's prompts."""
        root = self.folder / name
        (root / "params").mkdir(parents=True)
        (root / "params/p.yaml").write_text(yaml.safe_dump(PROFILE | {"store": store}))
        made = Experiment.load("p", root=root)
        if name != "reference":
            self.give_prompts(made)
        return made

    def give_prompts(self, experiment: Experiment) -> None:
        prompts = experiment.outputs.prompts(*TASK)
        prompts.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.reference.outputs.prompts(*TASK), prompts)

    def precompute(self, experiment: Experiment) -> None:
        experiment.precompute(self.model)

    def collect(self, experiment: Experiment) -> None:
        collect(experiment.store(), 0)

    def verify(self, experiment: Experiment) -> None:
        assert verify(experiment.store()).whole

    def evaluate(self, experiment: Experiment) -> pd.DataFrame:
        rows = evaluate(experiment, *TASK, self.model, self.tokenizer, progress=False)
        return rows.drop(columns=TIMES).map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell)

    def evaluate_until_a_write(self, experiment: Experiment) -> None:
        """`evaluate` in a child that kills itself before or within a write, after `writes_left` others."""
        append, replace = files.append, os.replace

        def count() -> None:
            self.writes_left -= 1

        def append_and_count(path: Path, content: bytes, *flags: int) -> None:
            if self.writes_left == 0:
                append(path, content[: Random(str(path)).randrange(len(content))], *flags)
                os.kill(os.getpid(), signal.SIGKILL)
            append(path, content, *flags)
            count()

        def replace_and_count(source: Path, path: Path) -> None:
            result = Path(path).parent == experiment.outputs.rows(*TASK).parent  # others are the store's
            if result and self.writes_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, path)
            if result:
                count()

        files.append, os.replace = append_and_count, replace_and_count
        self.evaluate(experiment)

    @cached_property
    def seconds(self) -> dict[str, float]:
        """How long each job takes in a process of its own."""
        experiment, taken = self.experiment("timed"), {}
        for name in ("precompute", "evaluate"):
            start = time.perf_counter()
            assert wait(self.start(name, experiment)) == FINISHED
            taken[name] = time.perf_counter() - start
        return taken

    def start(self, job: str, experiment: Experiment, user: int | None = None) -> int:
        """Run a job in a child process, as this user; a clear error goes to the file `error` in the root."""
        if child := os.fork():
            return child
        code = 1
        try:
            error = os.open(experiment.root / "error", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            if user is not None:
                os.setgid(user)
                os.setuid(user)
            try:
                getattr(self, job)(experiment)
                code = FINISHED
            except (StoreError, OSError) as raised:
                os.write(error, f"{type(raised).__name__}: {raised}".encode())
                code = CLEAR_ERROR
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def agrees(self, experiment: Experiment) -> None:
        """Check that running the same again finishes, with the results and the store of the reference."""
        self.precompute(experiment)
        rows = self.evaluate(experiment)
        assert not rows.duplicated(["prompt", "method", "ratio"]).any()
        pd.testing.assert_frame_equal(rows, self.rows)
        assert stored(experiment) == self.segments
        assert verify(experiment.store()).whole


def stored(experiment: Experiment) -> dict[str, bytes]:
    """The bytes of every segment."""
    store = experiment.store()
    return {key: store.folder.read(f"{key[:2]}/{key}.safetensors") for key in store.keys()}  # noqa: SIM118


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Kill precompute and evaluation at random moments, again and again until they finish first."""
    seconds, done = subject.seconds, Counter(precompute=0, evaluate=0, runs=0)
    while done["precompute"] + done["evaluate"] < count:
        experiment = subject.experiment(f"kills-{done['runs']}")
        partial = experiment.outputs.rows(*TASK).parent
        for job in ("precompute", "evaluate"):
            while done["precompute"] + done["evaluate"] < count:
                child = subject.start(job, experiment)
                time.sleep(random.uniform(0, seconds[job]))
                os.kill(child, signal.SIGKILL)
                code = wait(child)
                if code == FINISHED:  # before it could be killed
                    break
                assert code == -signal.SIGKILL, (experiment.root / "error").read_text()
                done[job] += 1
                assert verify(experiment.store()).whole
                rows = [row for path in partial.glob("*.partial.*.jsonl") for row in rows_so_far(path)]
                assert len({(row["prompt"], row["method"], row["ratio"]) for row in rows}) == len(rows)
        subject.agrees(experiment)
        shutil.rmtree(experiment.root)
        done["runs"] += 1
    return dict(done)


def flips(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Flip single bits: in segments' length fields, headers and data, in the manifest, and in rows so far."""
    experiment, done = subject.experiment("flips"), Counter(noticed=0)
    subject.precompute(experiment)
    prompts = [item.prompt for item in experiment.items(*TASK)]
    of = {key: prompt for prompt in prompts for key in experiment.keys(subject.model, [prompt])}
    store, expected = experiment.store(), {}
    for prompt in prompts:
        expected[prompt] = fused_prefill(subject.model, prompt, store, get_selector("full_reuse")).logits
    while done.total() - done["noticed"] < count:
        key = random.choice(sorted(of))
        path = Path(store.path(key))
        size, header = path.stat().st_size, 8 + int.from_bytes(path.read_bytes()[:8], "little")
        part = random.choice(["length", "header", "data"])
        start, stop = {"length": (0, 8), "header": (8, header), "data": (header, size)}[part]
        flip(path, random.randrange(8 * start, 8 * stop))
        try:
            logits = fused_prefill(subject.model, of[key], store, get_selector("full_reuse")).logits
            assert torch.equal(logits, expected[of[key]]), f"damage in {part} was used"
        except StoreError:
            done["noticed"] += 1
        done[part] += 1
        if done.total() % 20 == 0:  # a damaged manifest must not stop the next run
            flip(
                experiment.root / f"outputs/p/store/manifests/{experiment.outputs.manifest}.json", random.randrange(200)
            )
            with suppress(StoreError):
                collect(store, 0, dry_run=True)
            done["manifest"] += 1
        subject.precompute(experiment)
        assert stored(experiment) == subject.segments
    subject.agrees(experiment)
    done["rows"] = _flipped_rows(subject, max(5, count // 20), random)
    return dict(done)


def _flipped_rows(subject: Subject, count: int, random: Random) -> int:
    """Flip bits in the rows of an interrupted evaluation."""
    experiment, real = subject.experiment("rows"), subject.reference.outputs
    subject.precompute(experiment)
    identity = json.loads(real.summary(*TASK).read_text())["identity"]
    path, rows = (
        experiment.outputs.partial(*TASK, identity, "interrupted"),
        pd.read_parquet(real.rows(*TASK)).to_json(orient="records"),
    )
    for _ in range(count):
        append_rows(path, json.loads(rows))
        flip(path, random.randrange(8 * path.stat().st_size))
        pd.testing.assert_frame_equal(subject.evaluate(experiment), subject.rows)
        experiment.outputs.summary(*TASK).unlink()
        for written in experiment.outputs.partials(*TASK, identity):
            written.unlink()
    return count


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def truncations(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Cut files short anywhere, down to nothing."""
    experiment = subject.experiment("truncations")
    subject.precompute(experiment)
    store, prompts = experiment.store(), [item.prompt for item in experiment.items(*TASK)]
    of = {key: prompt for prompt in prompts for key in experiment.keys(subject.model, [prompt])}
    for number in range(count):
        key = random.choice(sorted(of))
        path = Path(store.path(key))
        os.truncate(path, random.randrange(path.stat().st_size) if number % 5 else 0)
        assert list(verify(store).damaged) == [key]
        try:
            fused_prefill(subject.model, of[key], store, get_selector("full_reuse"))
            raise AssertionError("a file cut short was used")
        except StoreError:
            pass
        subject.precompute(experiment)
        assert stored(experiment) == subject.segments
    subject.agrees(experiment)
    return {"files": count}


def full_disks(subject: Subject, count: int, random: Random) -> dict[str, int] | None:
    """Run on file systems that fill up midway, and collect garbage there; None if none can be mounted here."""
    done, needed = Counter(stopped=0, finished=0), sum(map(len, subject.segments.values()))
    for number in range(count):
        experiment = subject.experiment(f"full-{number}")
        outputs = experiment.root / "outputs"
        size = int(needed * random.uniform(0.2, 1.05)) + (100_000 if number % 2 else 0)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(outputs)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            return None
        try:
            subject.give_prompts(experiment)
            for job in ("precompute", "evaluate"):
                code = wait(subject.start(job, experiment))
                done["finished" if code == FINISHED else "stopped"] += 1
                error = (experiment.root / "error").read_text()
                known = "disk is full" in error or "not in the store" in error
                assert code == FINISHED or (code == CLEAR_ERROR and known), error
                assert verify(experiment.store()).whole
                if code == FINISHED:  # leave a little, for the rows
                    free = shutil.disk_usage(outputs).free
                    (outputs / "ballast").write_bytes(bytes(max(0, free - random.randrange(12_000))))
            with suppress(OSError), (outputs / "ballast").open("ab") as file:
                while True:
                    file.write(bytes(1 << 12))
                    file.flush()
            assert wait(subject.start("collect", experiment)) == FINISHED, (experiment.root / "error").read_text()
            assert not experiment.store().keys()
            done["collected"] += 1
            (outputs / "ballast").unlink(missing_ok=True)
            subprocess.run(["mount", "-o", f"remount,size={3 * needed}", str(outputs)], check=True)
            subject.agrees(experiment)
        finally:
            subprocess.run(["umount", str(outputs)], check=True)
    return dict(done)


def permissions(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Take permissions away from folders and files, and give them back; the jobs run as a user who needs them."""
    user, done = NOBODY if os.getuid() == 0 else None, Counter(stopped=0, finished=0)
    for number in range(count):
        experiment = subject.experiment(f"permissions-{number}")
        if number % 2:
            subject.precompute(experiment)
        store = Path(experiment.outputs.store)
        store.mkdir(exist_ok=True)
        if user is not None:
            subprocess.run(["chown", "-R", str(user), str(experiment.root)], check=True)
        places = [store, experiment.outputs.rows(*TASK).parent, *sorted(store.rglob("*"))]
        for place in (places[number // 2] if number < 4 else random.choice(places),):
            mode = place.stat().st_mode
            place.chmod(random.choice([0o000, 0o500 if place.is_dir() else 0o200]))
            try:
                for job in ("precompute", "evaluate"):
                    code = wait(subject.start(job, experiment, user))
                    assert code in (FINISHED, CLEAR_ERROR), f"{job} with {place} forbidden ended with {code}"
                    done["finished" if code == FINISHED else "stopped"] += 1
            finally:
                if place.exists():
                    place.chmod(mode)
        subject.agrees(experiment)
    return dict(done)


def broken_connections(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Cut all connections to an S3 server at random moments of both jobs."""
    done, before = Counter(stopped=0, finished=0), dict(os.environ)
    with s3_server() as server:
        target = server.rpartition(":")[2]
        proxy, port = _proxy(target)
        os.environ.update(s3_environment(port))
        try:
            for number in range(count):
                bucket = f"faults-{os.getpid()}-{number}"
                experiment = subject.experiment(f"connections-{number}", url=f"s3://{bucket}/kv")
                experiment.store().folder.files.mkdir(bucket)
                for job in ("precompute", "evaluate"):
                    child = subject.start(job, experiment)
                    time.sleep(random.uniform(0, subject.seconds[job]))
                    proxy.kill()
                    proxy.wait()
                    code, error = wait(child), (experiment.root / "error").read_text()
                    assert code == FINISHED or (code == CLEAR_ERROR and "StoreError" in error), (
                        f"{job}: {code}: {error}"
                    )
                    done["finished" if code == FINISHED else "stopped"] += 1
                    proxy, _ = _proxy(target, port)
                    subject.precompute(experiment)
                subject.agrees(experiment)
        finally:
            proxy.kill()
            proxy.wait()
            os.environ.clear()
            os.environ.update(before)
    return dict(done)


PROXY = """
import asyncio, sys

async def copy(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()

async def serve(reader, writer):
    to = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
    await asyncio.gather(copy(reader, to[1]), copy(to[0], writer), return_exceptions=True)

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[2]))
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def _proxy(target: str, port: int = 0) -> tuple[subprocess.Popen, int]:
    """Start a proxy for a server, whose connections end with its process; return that process and the proxy's port."""
    command = [sys.executable, "-c", PROXY, target, str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return process, int(process.stdout.readline())


def s3_environment(port: int) -> dict[str, str]:
    """For clients of an S3 server on this machine."""
    return {
        "AWS_ACCESS_KEY_ID": "loopback",
        "AWS_SECRET_ACCESS_KEY": "loopback",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def silent_servers(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Run all jobs against an S3 server that accepts connections and never answers."""
    done, before = Counter(stopped=0), dict(os.environ)
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:  # the system accepts for it
        os.environ.update(s3_environment(server.getsockname()[1]) | {"RAGKV_STORE_TIMEOUT": "0.2"})
        try:
            for number in range(count):
                experiment = subject.experiment(f"silent-{number}", url="s3://bucket/kv")
                for job in ("precompute", "evaluate", "collect", "verify"):
                    code = wait(subject.start(job, experiment))
                    error = (experiment.root / "error").read_text()
                    assert code == CLEAR_ERROR, f"{job}: {code}"
                    assert "for the store 's3://bucket/kv' to answer" in error, f"{job}: {error}"
                    done["stopped"] += 1
        finally:
            os.environ.clear()
            os.environ.update(before)
    return dict(done)


def unlistable_folders(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Collect garbage and verify while one of the store's folders cannot be listed."""
    user, done = NOBODY if os.getuid() == 0 else None, Counter(stopped=0)
    experiment = subject.experiment("unlistable")
    subject.precompute(experiment)
    store = Path(experiment.outputs.store)
    if user is not None:
        subprocess.run(["chown", "-R", str(user), str(experiment.root)], check=True)
    for folder in random.choices([store, *(path for path in store.iterdir() if path.is_dir())], k=count):
        mode = folder.stat().st_mode
        folder.chmod(random.choice([0o000, 0o300, 0o200]))
        try:
            for job in ("collect", "verify"):
                code = wait(subject.start(job, experiment, user))
                harmless = job == "verify" and folder.name == "uses"  # only evictions ask when segments were used
                assert code == CLEAR_ERROR or harmless, f"{job} without {folder} ended with {code}"
                done["stopped"] += 1
        finally:
            folder.chmod(mode)
        assert stored(experiment) == subject.segments
    subject.agrees(experiment)
    return dict(done)


def stopped_collectors(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Stop a collector midway; a job begins, and must keep what it finds when the collector continues."""
    done = Counter(kept=0, evicted=0)
    for number in range(count):
        experiment = subject.experiment(f"stopped-{number}")
        subject.precompute(experiment)
        store = experiment.store()
        collector = subject.start("collect", experiment)
        while not (Path(store.url) / "evicting").exists():
            assert os.waitpid(collector, os.WNOHANG) == (0, 0), "it ended without evicting anything"
        time.sleep(random.choice([0, random.uniform(0, 0.005)]))
        os.kill(collector, signal.SIGSTOP)
        with store.hold(subject.segments, "a job"):
            held = {key for key in subject.segments if store.segments.exists(key)}
            os.kill(collector, signal.SIGCONT)
            assert wait(collector) == FINISHED
            assert all(store.segments.read(key) == subject.segments[key] for key in held)
        done["kept"] += len(held)
        done["evicted"] += len(subject.segments) - len(held)
        subject.agrees(experiment)
        shutil.rmtree(experiment.root)
    return dict(done)


def damaged_results(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Flip bits in a finished table, its summary or their checksums, cut them short, put pipes in their place."""
    experiment, done = subject.experiment("results"), Counter()
    subject.precompute(experiment)
    outputs = experiment.outputs
    for number in range(count):
        subject.evaluate(experiment)
        path = random.choice([outputs.rows(*TASK), outputs.summary(*TASK)])
        beside = path.with_name(path.name + ".checksum")
        kind = random.choice(["flipped", "cut", "checksum", "no checksum", "pipe"])
        if kind == "cut":
            os.truncate(path, random.randrange(path.stat().st_size))
        elif kind == "no checksum":
            beside.unlink()
        elif kind == "pipe":
            path.unlink()
            os.mkfifo(path)
        else:
            changed = path if kind == "flipped" else beside
            flip(changed, random.randrange(8 * changed.stat().st_size))
        # A bit of an earlier version's checksum may have been flipped: then nothing is damaged.
        assert damage(path) or kind == "checksum", f"{path} was changed, and nobody noticed"
        if number % 10:  # the rows so far are still there
            pd.testing.assert_frame_equal(subject.evaluate(experiment), subject.rows)
        else:  # everything is computed again
            for partial in outputs.rows(*TASK).parent.glob("*.partial.*.jsonl"):
                partial.unlink()
        pd.testing.assert_frame_equal(subject.evaluate(experiment), subject.rows)
        assert damage(outputs.rows(*TASK)) is damage(outputs.summary(*TASK)) is None
        done[kind] += 1
    subject.agrees(experiment)
    return dict(done)


def damaged_prompts(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Flip bits in prompts and cut them short: nothing is computed from them, and they are made again."""
    experiment, done = subject.experiment("prompts"), Counter()
    experiment.chunk(subject.tokenizer)
    prompts = experiment.outputs.prompts(*TASK)
    before = prompts.read_bytes()
    for _ in range(count):
        kind = random.choice(["flipped", "cut"])
        if kind == "cut":
            os.truncate(prompts, random.randrange(prompts.stat().st_size))
        else:
            flip(prompts, random.randrange(8 * prompts.stat().st_size))
        for job in (subject.precompute, subject.evaluate):
            try:
                job(experiment)
                raise AssertionError("damaged prompts were used")
            except DamagedError as error:
                assert str(prompts) in str(error)
        experiment.chunk(subject.tokenizer)
        assert prompts.read_bytes() == before
        done[kind] += 1
    subject.agrees(experiment)
    return dict(done)


def killed_writes(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Kill evaluations before or within each single write of a table, its summary and their checksums."""
    experiment, done = subject.experiment("writes"), Counter()
    subject.precompute(experiment)
    subject.evaluate(experiment)
    outputs = experiment.outputs
    paths = [outputs.rows(*TASK), outputs.summary(*TASK)]
    for number in range(count):
        changed = with_another_method(experiment, f"again {number}")
        subject.writes_left = number % 6  # table: temporary file, checksum, replaced; and the same for the summary
        assert wait(subject.start("evaluate_until_a_write", changed)) == -signal.SIGKILL
        assert all(damage(path) is None for path in paths)
        same = read_rows(paths[0], "").attrs["identity"] == read_json(paths[1], "")["identity"]
        assert same == (number % 6 < 3), "only a kill between the two leaves a new table with an old summary"
        assert len(subject.evaluate(changed)) == len(subject.rows) // 2 * 3
        done["table" if same else "summary"] += 1
    subject.agrees(experiment)
    return dict(done)


def with_another_method(experiment: Experiment, label: str) -> Experiment:
    """The experiment with one more method, so that its tables have to be made again."""
    methods = [*experiment.profile.methods, experiment.profile.methods[0].model_copy(update={"label": label})]
    return experiment.model_copy(update={"profile": experiment.profile.model_copy(update={"methods": methods})})


def evaluations_at_once(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Two or three processes evaluate the same task at the same time, and some of them are killed."""
    done = Counter()
    for number in range(count):
        experiment = subject.experiment(f"at-once-{number}")
        subject.precompute(experiment)
        children = [subject.start("evaluate", experiment) for _ in range(random.choice([2, 3]))]
        if number % 2:
            time.sleep(random.uniform(0, subject.seconds["evaluate"]))
            os.kill(children[0], signal.SIGKILL)
        codes = [wait(child) for child in children]
        assert set(codes[1:]) == {FINISHED}
        assert codes[0] in (FINISHED, -signal.SIGKILL)
        for path in (experiment.outputs.rows(*TASK), experiment.outputs.summary(*TASK)):
            assert damage(path) is None
        done["killed"] += codes[0] != FINISHED
        done["finished"] += codes.count(FINISHED)
        subject.agrees(experiment)
        shutil.rmtree(experiment.root)
    return dict(done)


def kills_over_a_finished_table(subject: Subject, count: int, random: Random) -> dict[str, int]:
    """Kill evaluations of a profile that was changed: the finished table stays until its successor is whole."""
    experiment, done = subject.experiment("successor"), Counter(kept=0, replaced=0)
    subject.precompute(experiment)
    subject.evaluate(experiment)
    rows = experiment.outputs.rows(*TASK)
    before = rows.read_bytes()
    while done.total() < count:
        changed = with_another_method(experiment, f"again {done['replaced']}")
        child = subject.start("evaluate", changed)
        time.sleep(random.uniform(0, 1.5 * subject.seconds["evaluate"]))
        os.kill(child, signal.SIGKILL)
        code = wait(child)
        assert damage(rows) is None
        table = read_rows(rows, "")
        if rows.read_bytes() == before:
            assert code != FINISHED
            done["kept"] += 1
        else:
            assert len(table) == len(subject.rows) // 2 * 3
            before = rows.read_bytes()
            done["replaced"] += 1
    subject.agrees(experiment)
    return dict(done)


FAULTS: dict[str, tuple[Callable[[Subject, int, Random], dict[str, int] | None], int, int]] = {
    "kills": (kills, 10, 210),  # how often in the short and in the long form
    "flips": (flips, 100, 1020),
    "truncations": (truncations, 10, 60),
    "full_disks": (full_disks, 2, 10),
    "permissions": (permissions, 4, 14),
    "broken_connections": (broken_connections, 2, 6),
    "silent_servers": (silent_servers, 1, 3),
    "unlistable_folders": (unlistable_folders, 6, 40),
    "stopped_collectors": (stopped_collectors, 4, 40),
    "damaged_results": (damaged_results, 20, 600),
    "damaged_prompts": (damaged_prompts, 3, 60),
    "killed_writes": (killed_writes, 6, 60),
    "evaluations_at_once": (evaluations_at_once, 3, 40),
    "kills_over_a_finished_table": (kills_over_a_finished_table, 4, 60),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write what happened to this file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FAULTS, nargs="*", default=list(FAULTS))
    parser.add_argument("--short", action="store_true", help="as in the tests")
    parser.add_argument("--share", type=float, default=1.0, help="of the long form, on a machine that is busy")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ragkv-faults-"))
    folder.chmod(0o755)
    try:
        subject, outcomes = Subject(folder), {}
        for name in arguments.only:
            cause, few, many = FAULTS[name]
            start = time.perf_counter()
            count = few if arguments.short else max(few, round(many * arguments.share))
            outcome = cause(subject, count, Random(f"{arguments.seed} {name}"))
            outcomes[name] = outcome and outcome | {"seconds": round(time.perf_counter() - start, 1)}
            print(name, outcomes[name], flush=True)
        if arguments.json:
            report = {
                "seed": arguments.seed,
                "prompts": len(subject.rows) // len(PROFILE["methods"]),
                "faults": outcomes,
                "result": "after every fault, running the same again gave the undisturbed run's results and store",
                "provenance": provenance(subject.model),
            }
            write_json(arguments.json, report)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
