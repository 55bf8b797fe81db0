"""``python workflow/gpu.py COMMAND ...``: run a command with a GPU to itself; wait for one if all are taken.

A GPU is taken by locking a file. The system releases the lock when the command ends, however it ends. All runs of one
user on one machine share these locks, also those of different profiles. Without a GPU the command simply runs.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible() -> list[str]:
    """The UUIDs of the GPUs that may be used: all, or those in CUDA_VISIBLE_DEVICES."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    names = dict(line.split(", ") for line in listed.splitlines())
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(names.values()) if given is None else [names.get(gpu, gpu) for gpu in given.split(",") if gpu]


def take(gpus: list[str], folder: Path, seconds: float = 0.2) -> tuple[str, int]:
    """Wait for a free GPU, looking every so many `seconds`; returns it and the open file that holds its lock."""
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for gpu in gpus:
            file = os.open(folder / gpu, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
            else:
                return gpu, file
        time.sleep(seconds)


def main(command: list[str]) -> None:
    if gpus := visible():
        gpu, file = take(gpus, Path(tempfile.gettempdir(), f"ragkv-gpus-{os.getuid()}"))
        os.set_inheritable(file, True)  # the command inherits the lock
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.execvp(command[0], command)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("workflow/gpu.py: give the command to run")
    main(sys.argv[1:])
