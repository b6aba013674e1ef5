"""Who calls what takes long: this thread, or several; and what Ctrl-C must not come into the middle of."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any


class _Here(Executor):
    """Calls at once, in the caller's thread: one candidate at a time needs no other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is heard at the end of the block: in the middle of a statement a storage would lose it, or print a traceback of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(came[0])


@contextmanager
def callers(count: int) -> Iterator[Executor]:
    """Who calls the objective. An interruption does not wait for what is running."""
    executor = ThreadPoolExecutor(count) if count > 1 else _Here()
    try:
        yield executor
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
