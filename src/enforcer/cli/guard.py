"""Becomes another program that dies with its parent: `python guard.py PARENT_PID PROGRAM [ARGUMENT ...]`.

A supervisor that is killed cannot stop what it started; on Linux the kernel can. The wish is stated
here, between fork and exec, because Python code must not run in a fork of a process with threads.
Elsewhere this only executes the program, and the next start ends what is left. Run by path and with
`-I -S`: it imports nothing of ours, and starts in a few milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def guard(arguments: list[str]) -> None:
    """See the module. Does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - not needed elsewhere

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the kernel knew: then nobody will send the signal.
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(program[0], program)  # noqa: S606 - the supervisor chose it


if __name__ == "__main__":
    guard(sys.argv[1:])
