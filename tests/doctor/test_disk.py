"""A disk is measured where the store is or will be, and nothing stays there."""

import shutil

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from ragkv.doctor import checks
from ragkv.doctor.disk import free_bytes, speed


def test_a_disk_is_measured_where_the_store_will_lie(tmp_path):
    assert all(rate > 1e6 for rate in speed(str(tmp_path / "not" / "yet")))
    assert free_bytes(str(tmp_path / "not" / "yet")) == shutil.disk_usage(tmp_path).free
    assert all(rate > 1e6 for rate in speed("memory://disk"))
    assert list(tmp_path.iterdir()) == []
    assert fsspec.filesystem("memory").find("/disk") == []


def test_a_full_or_forgetful_disk_is_a_problem(monkeypatch, tmp_path):
    class Forgetful(MemoryFileSystem):
        protocol = "forgetful"

        def _open(self, path, mode="rb", **kwargs):
            file = super()._open(path, mode, **kwargs)
            if mode == "rb":
                file.getbuffer()[7] ^= 1
            return file

    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    found = checks.disk("forgetful://kv")
    assert found.state == "problem"
    assert "other bytes" in found.detail
    assert fsspec.filesystem("memory").find("/kv") == []

    monkeypatch.setattr(checks, "free_bytes", lambda url: 1e6)
    found = checks.disk(str(tmp_path))
    assert (found.state, "0.00 GB free" in found.detail) == ("warning", True)
