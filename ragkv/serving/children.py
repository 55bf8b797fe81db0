"""Processes that end when their parent does, even if it is killed and cannot end them itself.

As a program, ``python -m ragkv.serving.children PARENT COMMAND ...``, it runs a command in a process group of its own.
All processes of the group end with the command, and the command ends with the parent.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>
_GRACE = 60  # seconds that a command has to end after SIGTERM


def end_with_parent(parent: int) -> None:
    """Have Linux send SIGTERM to this process when its parent ends. If it has ended already, end now.

    Linux means the thread that started this process: it must not end earlier.

    Parameters
    ----------
    parent
        The id of the process that started this one.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit("the parent process has ended")


def run_group(parent: int, command: list[str]) -> int:
    """Run a command and return its exit code. What is left of its process group then is killed.

    The command gets SIGTERM when this process does, or when the parent ends.
    """
    end_with_parent(parent)
    process = subprocess.Popen(command, start_new_session=True)

    def kill(*_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def stop(*_: object) -> None:
        process.terminate()
        signal.alarm(_GRACE)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent gets it, too
    code = process.wait()
    kill()
    return code


if __name__ == "__main__":
    sys.exit(run_group(int(sys.argv[1]), sys.argv[2:]))
