"""Results on disk: whole or not at all, checked, and written by many at once."""

import json
import multiprocessing
import os
import time
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkv.results import files
from ragkv.results.files import DamagedError, damage, read_attrs, read_json, read_rows, write_json, write_rows
from ragkv.results.partial import append_rows, rows_so_far

TABLE = pd.DataFrame({"prompt": ["a", "b"], "score": [0.25, 1.0], "recomputed": [[1, 2], []]})


def test_a_table_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "t.parquet"
    table = TABLE.copy()
    table.attrs["identity"] = "abc"
    write_rows(path, table)
    found = read_rows(path, "")
    assert found.map(lambda cell: cell.tolist() if isinstance(cell, np.ndarray) else cell).equals(TABLE)
    assert found.attrs == read_attrs(path) == {"identity": "abc"}
    assert damage(path) is None
    write_rows(path, TABLE)
    assert read_attrs(path) == {}


@pytest.mark.parametrize("name", ["t.parquet", "t.json"])
def test_every_flipped_bit_and_every_cut_is_noticed_and_named(tmp_path, name):
    path, random = tmp_path / name, Random(name)
    if name == "t.parquet":
        write_rows(path, TABLE)
        read = read_rows
    else:
        write_json(path, TABLE.to_dict("records"), checked=True)
        read = read_json
    whole = path.read_bytes()
    damaged = [bytearray(whole) for _ in range(300)]
    for content in damaged:
        bit = random.randrange(8 * len(whole))
        content[bit // 8] ^= 1 << bit % 8
    for content in [*damaged, *(whole[:length] for length in range(0, len(whole), 7))]:
        path.write_bytes(content)
        assert f"does not match its checksum ({name}.checksum)" in damage(path)
        with pytest.raises(DamagedError, match=rf"{name} is damaged.*Run the same again"):
            read(path, "")
    path.write_bytes(whole)
    assert damage(path) is None


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 100, b"{", b"[" * 100_000])
def test_recorded_results_without_a_checksum_are_read_unless_they_are_unreadable(tmp_path, content):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text('{"a": 1}')
    bad.write_bytes(content)
    assert read_json(good, "") == {"a": 1}
    assert "it has no checksum" in damage(good)
    with pytest.raises(DamagedError, match=r"bad\.json is damaged: it is not JSON"):
        read_json(bad, "")
    with pytest.raises(DamagedError, match=r"bad\.json is damaged: it is not a table"):
        read_rows(bad, "")
    with pytest.raises(DamagedError, match=r"bad\.json is damaged: it is not a table"):
        read_attrs(bad)


def test_damage_of_the_checksum_itself_is_noticed(tmp_path):
    path = tmp_path / "t.parquet"
    write_rows(path, TABLE)
    checksum = tmp_path / "t.parquet.checksum"
    for content in (b"", checksum.read_bytes()[:-5], b"\xff\xfe"):
        checksum.write_bytes(content)
        assert damage(path) is not None


def test_a_writer_that_is_killed_between_checksum_and_table_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    write_json(path, {"a": 1}, checked=True)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2}, checked=True)
    monkeypatch.undo()
    assert read_json(path, "") == {"a": 1}
    assert damage(path) is None
    write_json(path, {"a": 2}, checked=True)
    assert read_json(path, "") == {"a": 2}
    assert damage(path) is None


def _write(path, number, start):
    start.wait()
    for version in range(30):
        write_rows(path, pd.DataFrame({"writer": [number] * 500, "version": version}))
        write_json(path.with_suffix(".json"), {"writer": number, "version": version, "text": "x" * 5000}, checked=True)


def test_writers_at_the_same_time_leave_a_whole_table(tmp_path):
    """While they write, whatever is read is one of the versions that were written."""
    path, context = tmp_path / "t.parquet", multiprocessing.get_context("fork")
    start = context.Event()
    writers = [context.Process(target=_write, args=(path, number, start)) for number in range(3)]
    for writer in writers:
        writer.start()
    start.set()
    read = 0
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            table = read_rows(path, "")
            assert len(table) == 500
            assert table["writer"].nunique() == table["version"].nunique() == 1
            read += 1
        time.sleep(0.01)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert read > 0
    assert damage(path) is damage(path.with_suffix(".json")) is None
    assert not list(tmp_path.glob("*.partial"))


def test_temporary_files_of_killed_writers_are_removed_after_a_day(tmp_path):
    path = tmp_path / "t.json"
    old, new, other = (tmp_path / f"{name}.partial" for name in ("t.json.aaaa", "t.json.bbbb", "u.json.aaaa"))
    for file in (old, new, other):
        file.write_text("cut off")
    for file in (old, other):
        os.utime(file, (time.time() - 100_000,) * 2)
    write_json(path, {})
    assert not old.exists()
    assert new.exists()
    assert other.exists()


def test_results_have_the_permissions_of_other_new_files(tmp_path):
    """Others may read them: a temporary file's permissions are not kept."""
    (tmp_path / "usual").touch()
    write_rows(tmp_path / "t.parquet", TABLE)
    modes = {file.stat().st_mode for file in tmp_path.iterdir()}
    assert len(modes) == 1


def test_unchanged_results_are_kept_unless_they_are_damaged(tmp_path):
    path = tmp_path / "t.json"
    write_json(path, {"a": 1}, keep_unchanged=True, checked=True)
    os.utime(path, (0, 0))
    write_json(path, {"a": 1}, keep_unchanged=True, checked=True)
    assert path.stat().st_mtime == 0
    (tmp_path / "t.json.checksum").unlink()
    write_json(path, {"a": 1}, keep_unchanged=True, checked=True)
    assert damage(path) is None


@given(st.lists(st.dictionaries(st.text(), st.floats() | st.text(), max_size=3)), st.data())
def test_rows_so_far_are_those_whose_lines_are_whole(tmp_path, rows, data):
    path = tmp_path / "rows.jsonl"
    path.unlink(missing_ok=True)
    append_rows(path, rows)
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    whole = path.read_bytes().count(b"\n")
    found = rows_so_far(path)
    assert len(found) - whole in (0, 1)  # a line may lack its line break alone
    assert json.dumps(found) == json.dumps(rows[: len(found)])


@pytest.mark.parametrize("name", ["t.json", "t.json.checksum"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_named_and_not_read(tmp_path, name, kind):
    """Reading a pipe or a device could take for ever."""
    path, place = tmp_path / "t.json", tmp_path / name
    write_json(path, {"a": 1}, checked=True)
    place.unlink()
    put = {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda place: os.symlink("/dev/zero", place)}
    put[kind](place)
    assert damage(path) == f"{name} is not a regular file: remove it"
    with pytest.raises(DamagedError, match=rf"{name} is not a regular file: remove it"):
        read_json(path, "")
    if kind == "folder" or place != path:
        with pytest.raises(OSError, match=r"cannot write .*t\.json: "):
            write_json(path, {"a": 1}, checked=True)
    else:
        write_json(path, {"a": 1}, checked=True)
        assert read_json(path, "") == {"a": 1}
        assert damage(path) is None


def test_rows_so_far_are_not_read_from_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "t.jsonl")
    assert rows_so_far(tmp_path / "t.jsonl") == []
    with pytest.raises(OSError, match="cannot write"):
        append_rows(tmp_path / "t.jsonl", [{"a": 1}])


def test_a_checksum_that_was_cut_short_does_not_spoil_the_next_one(tmp_path, monkeypatch):
    """A disk that is full in the middle of it."""
    path = tmp_path / "t.json"
    write_json(path, {"a": 1}, checked=True)
    append = files.append

    def half(path, content, *flags):
        append(path, content[: len(content) // 2] if path.suffix == ".checksum" else content, *flags)
        if path.suffix == ".checksum":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "append", half)
        with pytest.raises(OSError, match="the disk is full"):
            write_json(path, {"a": 2}, checked=True)
    assert read_json(path, "") == {"a": 1}
    write_json(path, {"a": 3}, checked=True)
    assert damage(path) is None


def test_a_temporary_file_may_vanish_while_leftovers_are_looked_for(tmp_path, monkeypatch):
    """Another writer has put it in its place."""
    (tmp_path / "t.json.0123.partial").touch()
    lstat = Path.lstat

    def vanished(path):
        path.unlink(missing_ok=True)
        return lstat(path)

    monkeypatch.setattr(Path, "lstat", vanished)
    write_json(tmp_path / "t.json", {"a": 1})
    assert read_json(tmp_path / "t.json", "") == {"a": 1}
