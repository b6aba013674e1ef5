"""Where worker processes come from: on Linux they are copies of one process that has only imported, so that it is done once, beside
the main process's own imports, and its memory is shared. Elsewhere each starts and imports by itself; a copy is not safe on macOS.
"""

import multiprocessing
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

METHOD = "forkserver" if sys.platform == "linux" else "spawn"


def context() -> BaseContext:
    """The way to start a worker."""
    found = multiprocessing.get_context(METHOD)
    if METHOD == "forkserver":
        found.set_forkserver_preload(["kdsearch.preloaded"])
    return found


def start_importing() -> None:
    """Start the process that workers are copied from, where there is one; the first worker would start it, and wait for its imports."""
    context()
    if METHOD == "forkserver":
        with without_interrupt():
            forkserver.ensure_running()


@contextmanager
def without_interrupt() -> Iterator[None]:
    """Ctrl-C reaches all processes of a terminal, and the parent decides; a process inherits what is blocked, from its first moment."""
    resource_tracker.ensure_running()  # multiprocessing's own process, whose start would unblock it again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
