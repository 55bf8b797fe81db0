"""``python workflow/gpu.py COMMAND ...``: the command on one GPU, to itself; where all are taken it waits for one.

A GPU is taken by a lock on a file, which the system gives back when the command ends, however it ends. All runs of one
user on one machine meet there, also those of different profiles. Without a GPU the command runs as it is.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def visible() -> list[str]:
    """The GPUs that may be used here, by the names that they have on every process: all, or CUDA_VISIBLE_DEVICES."""
    query = ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    names = dict(line.split(", ") for line in listed.splitlines())
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(names.values()) if given is None else [names.get(gpu, gpu) for gpu in given.split(",") if gpu]


def take(gpus: list[str], folder: Path, seconds: float = 0.2) -> tuple[str, int]:
    """The first of `gpus` that is free, looked for every so many `seconds`, and the open file that holds it."""
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
        os.set_inheritable(file, True)  # the command holds it from here on
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.execvp(command[0], command)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("workflow/gpu.py: give the command to run")
    main(sys.argv[1:])
