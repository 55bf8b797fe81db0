"""Buffers in a process that reads or writes them, and when they are pinned."""

from errno import ENOSPC
from pathlib import Path

import pytest
import torch

from ragkv.serving.buffers import Buffers, KVShape
from ragkv.serving.mapped import MappedBuffers

SHAPE = KVShape(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32)
TOKENS = 5


class FakePinning:
    """Remembers the addresses of what is pinned."""

    def __init__(self) -> None:
        self.pinned: list[int] = []
        self.times = 0
        self.full = False

    def pin(self, memory: torch.Tensor) -> None:
        if self.full:
            raise MemoryError("full")
        self.pinned.append(memory.data_ptr())
        self.times += 1

    def unpin(self, memory: torch.Tensor) -> None:
        self.pinned.remove(memory.data_ptr())


@pytest.fixture
def buffers():
    buffers = Buffers(3, SHAPE.numbers(TOKENS) * 4)
    yield buffers
    buffers.close()


@pytest.fixture
def pinning() -> FakePinning:
    return FakePinning()


def test_what_one_process_writes_another_one_reads(buffers):
    path = buffers.take()
    expected = torch.randn(2, 2, TOKENS - 1, 3, 4)
    MappedBuffers(SHAPE).keys_and_values(path, TOKENS - 1).copy_(expected)
    assert torch.equal(MappedBuffers(SHAPE).keys_and_values(path, TOKENS - 1), expected)


def test_a_buffer_is_pinned_once_while_its_file_exists(buffers, pinning):
    mapped, paths = MappedBuffers(SHAPE, pinning), [buffers.take(), buffers.take()]
    memory = [mapped.keys_and_values(path, tokens) for path in paths for tokens in (1, TOKENS)]
    assert pinning.pinned == [memory[0].data_ptr(), memory[2].data_ptr()]
    buffers.give_back(paths[0])
    mapped.keys_and_values(buffers.take(), TOKENS)
    assert pinning.times == 2, "a buffer that is lent again stays pinned"
    buffers.discard(paths[0])
    mapped.keys_and_values(paths[1], TOKENS)
    assert pinning.pinned == [memory[2].data_ptr()]


def test_a_buffer_that_cannot_be_pinned_is_not_used_and_tried_again_later(buffers, pinning):
    mapped, path = MappedBuffers(SHAPE, pinning), buffers.take()
    pinning.full = True
    for _ in range(2):
        with pytest.raises(MemoryError):
            mapped.keys_and_values(path, TOKENS)
    pinning.full = False
    mapped.keys_and_values(path, TOKENS)
    assert pinning.times == 1


def test_a_buffer_that_was_removed_cannot_be_read(buffers, pinning):
    mapped, path = MappedBuffers(SHAPE, pinning), buffers.take()
    mapped.keys_and_values(path, TOKENS)
    Path(path).unlink()
    with pytest.raises(OSError):
        mapped.keys_and_values(path, TOKENS)
    assert pinning.pinned == []


def test_memory_that_is_reserved_is_taken_and_a_full_machine_is_one_clear_error(buffers, monkeypatch):
    mapped, path = MappedBuffers(SHAPE), buffers.take()
    assert Path(path).stat().st_blocks == 0
    mapped.reserve(path, TOKENS)
    assert Path(path).stat().st_blocks * 512 >= SHAPE.numbers(TOKENS) * 4

    def full(*arguments: object) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(MemoryError, match=r"shared memory \(/dev/shm\) has no .* GiB left"):
        mapped.reserve(path, TOKENS)
