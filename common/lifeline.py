"""A child process that must not outlive its parent holds one end of a pipe; when the parent is gone, the pipe says so.

Unlike a signal from the parent this also works when the parent was killed with SIGKILL.
"""

import os
import signal
import threading

FD_VARIABLE = "AQUATINT_LIFELINE_FD"


def follow_parent() -> None:
    """If a parent gave us a lifeline, end as by SIGTERM when it is cut. Otherwise do nothing."""
    given = os.environ.pop(FD_VARIABLE, None)
    if given is not None:
        threading.Thread(target=_wait_for_end, args=(int(given),), name="lifeline", daemon=True).start()


def _wait_for_end(fd: int) -> None:
    os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)
