"""Looking after a store: manifests, eviction, verification, a cache, several writers, S3, the command line."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from random import Random

import pytest
import torch
import typer
from helpers import files, make_model, memory_store, random_ids, random_prompt, read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ragkv import KVStore, Prompt, StoreError, fused_prefill, precompute
from ragkv.bench.store import CREDENTIALS, s3_server
from ragkv.cli import app
from ragkv.models.segment_pass import compute_segment
from ragkv.prompt import Segment
from ragkv.selectors import get_selector
from ragkv.store import Cache, Layout, Manifest
from ragkv.store.collect import collect
from ragkv.store.commands import parse_bytes
from ragkv.store.inventory import list_segments, sharing
from ragkv.store.kvstore import HOLD_SECONDS
from ragkv.store.segment_file import check_file
from ragkv.store.verify import verify

LAYOUT = Layout("0" * 64, layers=2, kv_heads=1, head_dim=4, dtype=torch.float32)


def segment(number: int, tokens: int = 3) -> Segment:
    return Segment((number,) * tokens)


def fill(store: KVStore, numbers: list[int], tokens: int = 3) -> list[str]:
    """Write segments whose values are their numbers; return their keys."""
    for number in numbers:
        shape = (LAYOUT.layers, 2, 1, tokens, 4)
        store.write(LAYOUT, segment(number, tokens), torch.full(shape, float(number)), torch.zeros(tokens))
    return [LAYOUT.key(segment(number, tokens)) for number in numbers]


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def write_hold(store: KVStore, keys: list[str], age: float) -> Path:
    """A hold that was written so many seconds ago, by the clocks of its job and of the file system."""
    until = time.time() - age + HOLD_SECONDS
    store.folder.write_json("holds/a.json", {"job": "a job", "host": "h", "pid": 1, "until": until, "keys": keys})
    path = Path(store.folder.path("holds/a.json"))
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture(scope="session")
def s3():
    """The URL of an S3 server on loopback."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3, tmp_path):
    """An empty store on it, and the options to open it again."""
    options = CREDENTIALS | {"endpoint_url": s3}
    store = KVStore(f"s3://bucket-{abs(hash(tmp_path))}/kv", **options)
    store.folder.files.mkdir(store.folder.root.split("/")[0])
    return store, options


def test_manifests_say_who_needs_what_and_what_sharing_saves(store):
    one, two, three = fill(store, [1, 2, 3])
    size = store.folder.size(f"{one[:2]}/{one}.safetensors")
    store.manifests.write("p.llama", Manifest.of({"ruler/a": [one, two, one], "ruler/b": [one]}))
    store.manifests.write("q.llama", Manifest.of({"ruler/a": [three, "0" * 64]}))
    assert store.manifests.names() == ["p.llama", "q.llama"]
    assert store.manifests.read("p.llama").tasks == {"ruler/a": {one: 2, two: 1}, "ruler/b": {one: 1}}
    table = sharing(store).set_index("manifest")
    assert table.loc["p.llama"].to_dict() == {
        "tasks": 2, "references": 4, "segments": 2, "stored": 2, "bytes": 2 * size, "saved": 2 * size
    }  # fmt: skip
    assert table.loc["q.llama", ["segments", "stored", "saved"]].tolist() == [2, 1, 0]
    assert verify(store).missing == {"q.llama": 1}


@pytest.mark.parametrize("name", ["", "..", "../p", "a/b", "/etc/passwd", ".hidden", "a\0b"])
def test_a_manifest_has_a_plain_name(store, name):
    with pytest.raises(ValueError, match="cannot be named"):
        store.manifests.write(name, Manifest({}))


def test_a_damaged_or_foreign_manifest_is_named(tmp_path):
    store = KVStore(tmp_path)
    store.manifests.write("p", Manifest.of({"t": ["../../outside"]}))
    with pytest.raises(StoreError, match="outside"):
        collect(store, 0)
    path = tmp_path / "manifests/p.json"
    path.write_text(path.read_text().replace("outside", "outsiDe"))
    with pytest.raises(StoreError, match=r"manifests/p\.json is damaged .*checksum"):
        store.manifests.read("p")


def test_the_least_recently_used_leave_first(tmp_path):
    store = KVStore(tmp_path)
    keys = fill(store, [1, 2, 3, 4])
    for age, key in zip((400, 300, 200, 100), keys, strict=True):
        os.utime(store.path(key), (time.time() - age,) * 2)
    store.manifests.write("p", Manifest.of({"t": [keys[0]]}))  # used right now
    assert list_segments(store)["key"].tolist() == [keys[0], keys[3], keys[2], keys[1]]
    size = store.folder.size(f"{keys[0][:2]}/{keys[0]}.safetensors")
    before = files(tmp_path)
    planned = collect(store, 2 * size, dry_run=True)
    assert files(tmp_path) == before
    done = collect(store, 2 * size)
    assert done == planned
    assert done.evicted == [keys[1], keys[2]]
    assert (done.freed, done.bytes) == (2 * size, 2 * size)
    assert store.keys() == sorted([keys[0], keys[3]])
    assert collect(store, 2 * size).evicted == []


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=8), st.integers(0, 6000))
def test_eviction_keeps_to_the_budget_as_far_as_holds_allow(given_segments, budget):
    store, keys, held = memory_store(), [], []
    for number, (tokens, hold) in enumerate(given_segments):
        (key,) = fill(store, [number], tokens)
        keys.append(key)
        held += [key] * hold
    size = {key: store.folder.size(f"{key[:2]}/{key}.safetensors") for key in keys}
    with store.hold(held, "test"):
        done = collect(store, budget)
        left = set(store.keys())
    assert set(held) <= left
    assert left == set(keys) - set(done.evicted)
    assert done.bytes == sum(size[key] for key in left)
    assert done.bytes <= budget or left == set(held)
    if done.evicted:  # no more than necessary
        assert done.bytes + size[done.evicted[-1]] > budget


def test_nothing_but_segments_is_ever_removed(tmp_path):
    root, outside = tmp_path / "kv", tmp_path / "outside"
    store = KVStore(root)
    (key,) = fill(store, [1])
    outside.mkdir()
    victim = outside / f"cc{key[2:]}.safetensors"
    victim.write_bytes(b"not the store's")
    (root / "cc").symlink_to(outside)
    (root / "dd").mkdir()
    (root / "dd" / f"dd{key[2:]}.safetensors").symlink_to(victim)
    others = [
        "notes.txt",
        "dd/model.safetensors",
        f"dd/{key}.safetensors",
        f"{key}.safetensors",
        "deep/dd/a.safetensors",
    ]
    for name in others:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not the store's")
    assert collect(store, 0).evicted == [key]
    assert all((root / name).read_bytes() == b"not the store's" for name in others)
    assert victim.read_bytes() == b"not the store's"
    assert (root / "dd" / f"dd{key[2:]}.safetensors").is_symlink()


def test_what_killed_jobs_left_behind_is_removed_after_an_hour(tmp_path):
    store = KVStore(tmp_path)
    (key,) = fill(store, [1])
    names = [f"{store.path(key)}.{letter * 32}.partial" for letter in "ab"]
    for name in names:
        Path(name).write_bytes(b"half")
    os.utime(names[0], (time.time() - 7200,) * 2)
    for kind in ("holds", "uses", "manifests", "key", "notes"):  # the last one is not a folder of the store
        names.append(tmp_path / kind / f"a.json.{'c' * 32}.partial")
        names[-1].parent.mkdir(exist_ok=True)
        names[-1].write_bytes(b"half")
        os.utime(names[-1], (time.time() - 7200,) * 2)
    hold = write_hold(store, [key], age=7200)
    assert verify(store).leftovers == 6
    assert collect(store, 10**9, dry_run=True).leftovers == 5
    assert hold.exists()
    assert collect(store, 10**9).leftovers == 5
    assert not hold.exists()
    assert [name for name in names if Path(name).exists()] == [names[1], names[-1]]
    assert store.keys() == [key]


def test_a_hold_is_renewed_while_its_job_lives(tmp_path):
    store = KVStore(tmp_path)
    (key,) = fill(store, [1])
    store.holds._seconds = 0.2
    with store.hold([key], "long"):
        time.sleep(0.6)
        assert collect(store, 0).evicted == []
    assert collect(store, 0).evicted == [key]


def _work(root: str, numbers: list[int], seconds: float, failures) -> None:
    """Hold, write what is missing, read everything; again and again."""
    store, end, random = KVStore(root), time.time() + seconds, Random(numbers[0])
    while time.time() < end:
        some = random.sample(numbers, 3)
        with store.hold([LAYOUT.key(segment(n)) for n in some], "work"):
            fill(store, [n for n in some if not store.check(LAYOUT, segment(n))])
            for _ in range(5):
                for number in some:
                    try:
                        assert (store.open(LAYOUT, segment(number)).layer(0) == number).all()
                    except (KeyError, StoreError, AssertionError) as error:
                        failures.put(repr(error))
                        return


def test_eviction_while_jobs_run_takes_nothing_that_they_hold(tmp_path):
    context, store = multiprocessing.get_context("fork"), KVStore(tmp_path)
    failures, numbers = context.Queue(), list(range(8))
    jobs = [context.Process(target=_work, args=(str(tmp_path), numbers[i:], 2.0, failures)) for i in range(2)]
    for job in jobs:
        job.start()
    evicted = 0
    while any(job.is_alive() for job in jobs):
        evicted += len(collect(store, 0).evicted)
    for job in jobs:
        job.join()
    assert failures.empty(), failures.get()
    assert evicted > 10
    assert verify(store).whole


def test_a_damaged_hold_stops_eviction(tmp_path):
    store = KVStore(tmp_path)
    keys = fill(store, [1])
    with store.hold(keys, "job"):
        (hold,) = (tmp_path / "holds").iterdir()
        flip(hold, 200)
        with pytest.raises(StoreError, match="damaged"):
            collect(store, 0)
    assert store.keys() == keys


def _write_all(root: str) -> None:
    store = KVStore(root)
    for _ in range(20):
        fill(store, list(range(5)))


def test_several_writers_of_the_same_segments(tmp_path):
    context, store = multiprocessing.get_context("fork"), KVStore(tmp_path)
    writers = [context.Process(target=_write_all, args=(str(tmp_path),)) for _ in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert verify(store).whole
    assert all(writer.exitcode == 0 for writer in writers)
    assert len(store.keys()) == 5
    for number in range(5):
        assert (torch.stack(read_all(store, LAYOUT, segment(number))[1:]) == number).all()
    assert sorted(files(tmp_path)) == sorted(f"{key[:2]}/{key}.safetensors" for key in store.keys())  # noqa: SIM118


def test_verify_finds_every_flipped_bit(tmp_path):
    """Every bit of the header, and a sample of those in the data."""
    store = KVStore(tmp_path)
    keys = fill(store, [1, 2])
    path, other = (Path(store.path(key)) for key in keys)
    data = path.read_bytes()
    header = 8 * (8 + int.from_bytes(data[:8], "little"))
    check_file(keys[0], data, store.checksums)
    for bit in [*range(header), *Random(0).sample(range(header, 8 * len(data)), 100)]:
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, StoreError)):
            check_file(keys[0], damaged, store.checksums)
    for bit in Random(1).sample(range(8 * len(data)), 20):
        flip(path, bit)
        assert list(verify(store).damaged) == [keys[0]]
        path.write_bytes(data)
    path.write_bytes(other.read_bytes())
    assert "does not belong to its name" in verify(store).damaged[keys[0]]
    path.write_bytes(data[:-1])
    assert "cut short" in verify(store).damaged[keys[0]]
    path.write_bytes(data)
    assert verify(store).whole


def test_a_cache_serves_what_was_fetched_and_never_damaged_copies(tmp_path):
    remote, folder = tmp_path / "remote", tmp_path / "cache"
    store = KVStore(remote, cache=Cache(folder, 10**6))
    (key,) = fill(KVStore(remote), [1])
    expected = read_all(store, LAYOUT, segment(1))
    copy, original = folder / key[:2] / f"{key}.cached", Path(store.path(key))
    assert copy.read_bytes() == original.read_bytes()
    original.unlink()
    assert all(map(torch.equal, read_all(store, LAYOUT, segment(1)), expected))
    assert not store.check(LAYOUT, segment(1))  # not in the store itself
    flip(copy, 3000)
    with pytest.raises(KeyError):
        store.open(LAYOUT, segment(1))
    assert not copy.exists()
    fill(KVStore(remote), [1])
    flip(original, 8 * original.stat().st_size - 9)
    with pytest.raises(StoreError, match="damaged"):
        store.open(LAYOUT, segment(1))
    assert not copy.exists()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=30), st.integers(0, 20_000))
def test_a_cache_keeps_to_its_limit(tmp_path_factory, requests, limit):
    folder, store = tmp_path_factory.mktemp("cache"), memory_store()
    cache = Cache(folder, limit)
    cached = KVStore(store.url, cache=cache)
    for number, tokens in requests:
        fill(store, [number], tokens)
        assert (cached.open(LAYOUT, segment(number, tokens)).layer(1) == number).all()
        assert cache.bytes() <= limit


def test_a_cache_drops_the_least_recently_used(tmp_path):
    store = memory_store()
    keys = fill(store, list(range(6)))
    size = store.folder.size(f"{keys[0][:2]}/{keys[0]}.safetensors")
    cache = Cache(tmp_path, 6 * size)
    cached = KVStore(store.url, cache=cache)
    for age, number in enumerate([0, 1, 2, 3, 4]):
        cached.open(LAYOUT, segment(number))
        os.utime(tmp_path / keys[number][:2] / f"{keys[number]}.cached", (1000 + age,) * 2)
    cached.open(LAYOUT, segment(0))
    cache.limit = 5 * size
    cache._allowance = 0
    cached.open(LAYOUT, segment(5))
    kept = [cache.get(keys[number], store.checksums) is not None for number in (0, 1, 5)]
    assert kept == [True, False, True]


def test_s3_holds_the_same_bytes_and_gives_the_same_answers(llama, rng, bucket, tmp_path):
    prompt, folder = random_prompt(rng), KVStore(tmp_path / "kv")
    store, options = bucket
    for each in (folder, store):
        assert precompute(llama, [prompt], each).written == 4
        assert precompute(llama, [prompt], each).written == 0
    assert folder.keys() == store.keys()
    for key in folder.keys():  # noqa: SIM118
        assert Path(folder.path(key)).read_bytes() == store.folder.files.cat_file(store.path(key))
    cached = KVStore(store.url, cache=Cache(tmp_path / "cache", 10**8), **options)
    expected = fused_prefill(llama, prompt, folder, get_selector("a3")).logits
    for each in (store, cached, cached):
        assert torch.equal(fused_prefill(llama, prompt, each, get_selector("a3")).logits, expected)
    with store.hold(store.keys(), "job"):
        assert collect(store, 0).evicted == []
    assert verify(store).whole
    assert len(collect(store, 0).evicted) == 4
    assert store.missing(Layout.of(llama), prompt.segments(1)) == prompt.segments(1)


def test_damage_on_s3_is_found_and_repaired(llama, rng, bucket):
    store, _ = bucket
    prompt = random_prompt(rng)
    precompute(llama, [prompt], store)
    path = store.path(store.keys()[0])
    data = store.folder.files.cat_file(path)
    store.folder.files.pipe_file(path, data[:8] + bytes([data[8] ^ 1]) + data[9:])
    with pytest.raises(StoreError, match="damaged"):
        fused_prefill(llama, prompt, store, get_selector("full_reuse"))
    assert list(verify(store).damaged) == [store.keys()[0]]
    assert precompute(llama, [prompt], store).written == 1
    assert store.folder.files.cat_file(path) == data


def run(*arguments: str):
    return CliRunner().invoke(app, ["store", *map(str, arguments)])


def test_the_command_line(tmp_path):
    model, store = make_model("llama"), KVStore(tmp_path)
    shared = random_ids(Random(0), 9)
    prompts = [Prompt([], [shared, [5, 6]], [9]), Prompt([], [shared], [9])]
    precompute(model, prompts, store)
    layout = Layout.of(model)
    keys = [layout.key(s) for prompt in prompts for s in prompt.segments(1)]
    store.manifests.write("p.llama", Manifest.of({"ruler/a": keys}))
    listed = run("ls", tmp_path)
    assert listed.exit_code == 0
    assert all(key[:12] in listed.stdout for key in keys)
    assert f"{len(set(keys))} segments, 11 tokens" in listed.stdout
    assert sum(key[:12] in run("ls", tmp_path, "--limit", 1).stdout for key in set(keys)) == 1
    with store.hold(keys, "a job"):
        said = run("stats", tmp_path, "--cache", tmp_path / "cache").stdout
        assert "p.llama" in said
        assert "1.50 uses each" in said
        assert f"held: 2 segments by process {os.getpid()}" in said
        assert "cache" in said
        over = run("gc", tmp_path, "--budget", "0")
        assert "evicted 0 segments" in over.stdout
        assert "over the budget: running jobs hold 2" in over.stdout
    assert run("verify", tmp_path).exit_code == 0
    flip(Path(store.path(keys[0])), 8 * 3000)
    found = run("verify", tmp_path)
    assert found.exit_code == 1
    assert f"damaged: {keys[0]}" in found.stdout
    assert "damaged" in run("verify", tmp_path).stdout
    assert "would evict 2 segments" in run("gc", tmp_path, "--budget", "1k", "--dry-run").stdout
    assert "evicted 2 segments" in run("gc", tmp_path, "--budget", "1 kB").stdout
    assert "0 segments" in run("ls", tmp_path).stdout
    assert "0 segments" in run("stats", tmp_path).stdout


def test_the_command_line_explains_errors(tmp_path):
    for arguments, said in (
        (["ls", tmp_path / "none"], "there is no folder"),
        (["gc", tmp_path, "--budget", "much"], "is no number of bytes"),
        (["verify", "nonsense://kv"], "nonsense"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert said in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1k", 1000), ("500M", 5e8), ("1.5 GB", 1.5e9), (" 2T ", 2e12), ("1KiB", 1024)]
)
def test_a_budget_is_a_size(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1", "1,000G", "1.5.3G", "3 quarks", "5%", "1G 2"])
def test_a_budget_that_is_no_size_is_refused(text):
    """A mistake would evict everything."""
    with pytest.raises(typer.BadParameter, match="is no number of bytes"):
        parse_bytes(text)


def test_precompute_and_evaluation_hold_what_they_need(tmp_path, monkeypatch):
    """While they run, evicting everything evicts nothing; their manifest says what they needed."""
    from profiles import run as evaluate_all
    from profiles import write_profile

    from ragkv import load_model
    from ragkv.experiment import experiment as module
    from ragkv.experiment.prompt_loop import PromptLoop

    tiny, experiment = load_model("tiny-llama", device="cpu"), write_profile(tmp_path)
    experiment.chunk(tiny[1])
    real, evicted = module.precompute, []

    def beside(model, prompts, store, **options):
        done = real(model, prompts, store, **options)
        evicted.extend(collect(store, 0).evicted)
        return done

    monkeypatch.setattr(module, "precompute", beside)
    done = experiment.precompute(tiny[0])
    store = experiment.store()
    assert done.written == len(store.keys())
    (name,) = store.manifests.names()
    assert sorted(store.manifests.read(name).tasks["ruler/vt_1"]) == store.keys()
    answers = PromptLoop.answers

    def answering(self, *arguments):
        evicted.extend(collect(store, 0).evicted)
        return answers(self, *arguments)

    monkeypatch.setattr(PromptLoop, "answers", answering)
    before = json.loads((Path(store.url) / f"uses/{name}.json").read_text())["value"]["at"]
    assert len(evaluate_all(experiment, tiny)) == 12
    assert json.loads((Path(store.url) / f"uses/{name}.json").read_text())["value"]["at"] > before
    assert evicted == []
    assert len(collect(store, 0).evicted) == done.written


def test_a_profile_names_its_store_and_cache(tmp_path):
    from profiles import write_profile

    given = {"url": "shared/kv", "cache": "cache", "cache_gigabytes": 0.5}
    store = write_profile(tmp_path, store=given).store("fp8")
    assert (store.url, store.format) == (str(tmp_path / "shared/kv"), "fp8")
    assert (store.cache.folder, store.cache.limit) == (tmp_path / "cache", 500_000_000)
    assert write_profile(tmp_path, store={"url": "memory://kv"}).store().url == "memory://kv"
    assert write_profile(tmp_path).store().cache is None


def test_a_store_that_links_elsewhere_is_not_written_through(llama, tmp_path):
    root, outside = tmp_path / "kv", tmp_path / "outside"
    store, layout, wanted = KVStore(root), Layout.of(llama), Segment((5, 6, 7))
    outside.mkdir()
    root.mkdir()
    (root / layout.key(wanted)[:2]).symlink_to(outside)
    with pytest.raises(StoreError, match="leads elsewhere by a link"):
        store.write(layout, wanted, *compute_segment(llama, wanted))
    assert not list(outside.iterdir())
    with pytest.raises(ValueError, match="no segment's key"):
        store.path("../../etc/passwd")
