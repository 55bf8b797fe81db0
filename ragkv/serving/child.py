"""Runs a command that ends when its parent does: ``python -m ragkv.serving.child PARENT COMMAND ...``.

Linux sends the command SIGTERM when the thread that started it ends, however it ends. A parent that is killed with
SIGKILL has no chance to end its children itself.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>; it stays in force across exec


def main(parent: int, command: list[str]) -> None:
    """Replace this process by the command, unless the parent has ended already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() == parent:  # otherwise it ended before the call above, and no signal will come
        os.execvp(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
