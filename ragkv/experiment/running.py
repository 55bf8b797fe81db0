"""One run of a profile's workflow at a time: known to be alive by a lock that the system releases with its process."""

import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

from ragkv.results.outputs import Outputs


def start_run(outputs: Outputs, snakemake_locks: Path) -> TextIO | None:
    """Say that this process runs a profile, and remove Snakemake's locks of earlier runs, which must have ended.

    Parameters
    ----------
    snakemake_locks
        The folder of Snakemake's locks. It keeps those of a run that was killed.

    Returns
    -------
    TextIO or None
        The file that holds the lock as long as it is open; None on a file system without locks.

    Raises
    ------
    RuntimeError
        Another run of the profile is alive; the message names its process.
    """
    outputs.profile_folder.mkdir(parents=True, exist_ok=True)
    file = (outputs.profile_folder / ".running").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise RuntimeError(
            f"the profile {outputs.profile!r} is being run by {file.read().strip() or 'another process'}: "
            "wait until it is finished, or stop it"
        ) from None
    except OSError:
        return None
    file.truncate(0)
    print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
    for lock in snakemake_locks.glob("*.lock"):
        files = lock.read_text(errors="replace").splitlines()
        if any(line.startswith(f"{outputs.profile_folder}/") for line in files):
            lock.unlink(missing_ok=True)
    return file
