"""Persistent processes that evaluate the candidates of one study side by side; while one times latency, the others stand still.

Small students gain nothing from a second thread (a step of 2 x 288 took 1.3 times as long on two), so a machine is filled by processes.
Each imports and loads once; what the teacher said is on disk and shared. A process that dies takes its trial with it and is replaced.
"""

import math
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from filelock import FileLock

from kdsearch import beside, guard, objective, workbench
from kdsearch.candidate import Candidate
from kdsearch.check import Study
from kdsearch.distillation.loop import Progress
from kdsearch.machine import accelerator, cores, use_precision
from kdsearch.order import Order
from kdsearch.records import FAILED, Measurement, NobodyLeftError, measured
from kdsearch.resources import CACHE_VARIABLE, cache_folder
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import StudySpec
from kdsearch.workbench import Bench

TELL_SECONDS, POLL_SECONDS, PATIENCE = 1.0, 0.01, 5.0
MOST_UNASKED = 8


def count_for(spec: StudySpec) -> int:
    """``search.workers``; without it one for each core that computes, up to 8 (each has its own teacher), and on a GPU one."""
    return spec.search.workers or (min(MOST_UNASKED, cores()) if spec.target.device == "cpu" else 1)


@dataclass(frozen=True)
class Lesson:
    """What a process needs to prepare its bench: the study, the candidates outside of its space, what the main process found, how many
    bytes of memory each may hold, and where the cache is now: what processes are copied from may have started with another."""

    spec: StudySpec
    space: SearchSpace
    base: Path
    extra: list[Candidate]
    known: workbench.Known
    precision: str
    most_bytes: float = math.inf
    cache: Path = field(default_factory=cache_folder)


def lesson(study: Study, bench: Bench, extra: list[Candidate]) -> Lesson:
    """What the processes of a study need, which this process has prepared."""
    precision = accelerator(study.spec.target.device).mixed_precision
    return Lesson(study.spec, study.space, study.base, extra, bench.known, precision, bench.most_bytes)


class Gate:
    """A lock for each worker, held while it computes, and a turnstile that lets no one past while somebody wants quiet.

    Locks are files, so that the system frees those of a process that died.
    """

    def __init__(self, folder: Path, number: int, count: int) -> None:
        def lock(name: object) -> FileLock:
            return FileLock(folder / str(name), poll_interval=POLL_SECONDS)

        self.turnstile, self.locks = lock("turnstile"), [lock(one) for one in range(count)]
        self.own = self.locks[number]

    def step_aside(self) -> None:
        """Stand still for as long as another worker wants quiet."""
        self.own.release()
        with self.turnstile:
            pass
        self.own.acquire()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """While open, every other worker stands still."""
        self.own.release()
        with self.turnstile, ExitStack() as held:
            for lock in self.locks:
                held.enter_context(lock)
            yield
        self.own.acquire()


@dataclass(frozen=True)
class Worker:
    """A process and the way to talk to it."""

    number: int
    process: BaseProcess
    connection: Connection


class Workers:
    """``count`` processes for a study, as a context manager; :meth:`evaluate` may be called from as many threads.

    Without a lesson they start and import while it is prepared, and :meth:`load` gives it to them.
    """

    def __init__(self, lesson: Lesson | None, count: int, progress: Progress = workbench.silent) -> None:
        self.lesson, self.count, self.progress = lesson, count, progress
        self.idle: queue.Queue[Worker | None] = queue.Queue()  # None: none will come any more
        self.all: dict[int, Worker] = {}
        self.closing = False

    def __enter__(self) -> "Workers":
        """Start all; with a lesson, load it too."""
        self.folder = tempfile.TemporaryDirectory(prefix="kdsearch-")
        try:
            for number in range(self.count):
                self.all[number] = self._started(number)
            if self.lesson:
                self.load(self.lesson)
        except BaseException:
            self.__exit__()
            raise
        return self

    def load(self, lesson: Lesson) -> None:
        """Give all of them the lesson, and wait until they have loaded.

        Raises:
            RuntimeError: one cannot start; the message says why.
        """
        self.lesson = lesson
        for worker in self.all.values():
            _give(worker, lesson)
        for worker in self.all.values():
            _wait_until_ready(worker)
            self.idle.put(worker)

    def evaluate(self, order: Order) -> Measurement:
        """:func:`kdsearch.objective.evaluate` in the next process that is free.

        What it raises there is a failed measurement with its traceback; so is the death of the process, in whose place a new one starts.
        """
        worker, start = self.idle.get(), time.perf_counter()
        if worker is None:
            self.idle.put(None)
            raise NobodyLeftError("no worker process is left; its trials are tried again when the same command goes on")
        answer: Any = ("", 0, 0)
        try:
            worker.connection.send(order)
            while isinstance(answer := worker.connection.recv(), tuple):
                self.progress(*answer)
        except (EOFError, OSError) as error:
            if self.closing:
                raise NobodyLeftError("the search was stopped") from error
            worker.process.join(PATIENCE)
            worker.process.kill()
            reason = f"the worker process ended ({_ending(worker.process)}); too little memory is the usual cause"
            answer = Measurement(FAILED, reason=reason, seconds=time.perf_counter() - start)
            worker = self._replaced(worker)
        self.idle.put(worker)
        return answer

    def __exit__(self, *_: object) -> None:
        self.closing = True
        for worker in self.all.values():
            worker.process.terminate()
        self.idle.put(None)
        for worker in self.all.values():
            worker.process.join(PATIENCE)
            worker.process.kill()
        self.folder.cleanup()

    def _replaced(self, worker: Worker) -> Worker:
        worker.connection.close()
        try:
            fresh = self.all[worker.number] = self._started(worker.number)
            _give(fresh, self.lesson)
            _wait_until_ready(fresh)
        except BaseException:
            self.idle.put(None)
            raise
        return fresh

    def _started(self, number: int) -> Worker:
        context = beside.context()
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        arguments = (theirs, threads, Path(self.folder.name), number, self.count)
        process = context.Process(target=_work, args=arguments, daemon=True, name=f"kdsearch worker {number}")  # pyright: ignore
        with beside.without_interrupt():
            process.start()
        theirs.close()
        return Worker(number, process, ours)


def _give(worker: Worker, lesson: Lesson | None) -> None:
    """Send the lesson; of a process that has ended, :func:`_wait_until_ready` says why."""
    with suppress(OSError):
        worker.connection.send(lesson)


def _wait_until_ready(worker: Worker) -> None:
    try:
        said = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join(PATIENCE)
        said = (
            f"it ended ({_ending(worker.process)}); its own message stands above. A program that calls run_study must do so under "
            'if __name__ == "__main__":'
        )
    if said is not None:
        raise RuntimeError(f"a worker process cannot start: {said}. With --workers 1 the search needs none")


def _work(connection: Connection, threads: int, folder: Path, number: int, count: int) -> None:
    """A process's life: load, evaluate what comes, end with the parent."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with what a process does at its end
    Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(threads)
    gate, told = Gate(folder, number, count), time.monotonic()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal told
        gate.step_aside()
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            connection.send((stage, done, total))

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        lesson: Lesson = connection.recv()
        os.environ[CACHE_VARIABLE] = str(lesson.cache)
        try:
            use_precision(lesson.spec.target.device, lesson.precision)
            with gate.own:
                bench = workbench.prepare(lesson.spec, lesson.space, lesson.base, lesson.extra, known=lesson.known)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        bench = replace(bench, quiet=gate.quiet, most_bytes=lesson.most_bytes)
        connection.send(None)
        while True:
            order = connection.recv()
            with gate.own:
                answer = measured(objective.evaluate, order, bench, progress)
            connection.send(answer)
            guard.give_back()  # while the parent asks for the next


def _end_with_the_parent() -> None:
    """A parent that is killed closes nothing in order, and nobody waits for what is trained here any more."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    return "still there" if code is None else f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
