"""Persistent processes that evaluate the candidates of one study side by side; while one times latency, the others stand still.

Small students gain nothing from a second thread (a step of 2 x 288 took 1.3 times as long on two), so a machine is filled by processes.
Each imports and loads once; what the teacher said is on disk and shared. A process that dies takes its trial with it and is replaced.
"""

import multiprocessing
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from kdsearch import objective
from kdsearch.candidate import Candidate
from kdsearch.distillation.loop import Progress
from kdsearch.machine import cores
from kdsearch.records import FAILED, Measurement, measured
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import StudySpec

TELL_SECONDS, POLL_SECONDS, PATIENCE = 1.0, 0.01, 5.0
MOST_UNASKED = 8


def count_for(spec: StudySpec) -> int:
    """``search.workers``; without it one for each core that computes, up to 8 (each has its own teacher), and on a GPU one."""
    return spec.search.workers or (min(MOST_UNASKED, cores()) if spec.target.device == "cpu" else 1)


@dataclass(frozen=True)
class Lesson:
    """What a process needs to prepare its bench: the study's data, and the candidates outside of its space."""

    spec: StudySpec
    space: SearchSpace
    base: Path
    extra: list[Candidate]


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
        with self.turnstile:
            for lock in self.locks:
                lock.acquire()
            try:
                yield
            finally:
                for lock in self.locks:
                    lock.release()
        self.own.acquire()


@dataclass(frozen=True)
class Worker:
    """A process and the way to talk to it."""

    number: int
    process: BaseProcess
    connection: Connection


class Workers:
    """``count`` processes for a study, as a context manager; :meth:`evaluate` may be called from as many threads."""

    def __init__(self, lesson: Lesson, count: int, progress: Progress = objective.silent) -> None:
        self.lesson, self.count, self.progress = lesson, count, progress
        self.facts: dict[str, Any] = {}
        self.idle: queue.Queue[Worker] = queue.Queue()
        self.all: dict[int, Worker] = {}

    def __enter__(self) -> "Workers":
        self.folder = tempfile.TemporaryDirectory(prefix="kdsearch-")
        self.all = {number: self._started(number) for number in range(self.count)}
        return self

    def open(self, facts: dict[str, Any]) -> None:
        """Let the processes load teacher and data, which are ready now; they have imported meanwhile."""
        self.facts = facts
        for worker in self.all.values():
            worker.connection.send(facts)
            self.idle.put(worker)

    def evaluate(self, candidate: Candidate, seed: int, train_anyway: bool) -> Measurement:
        """:func:`kdsearch.objective.evaluate` in the next process that is free.

        What it raises there is a failed measurement with its traceback; so is the death of the process.
        """
        worker, start = self.idle.get(), time.perf_counter()
        try:
            worker.connection.send((candidate, seed, train_anyway))
            while isinstance(answer := worker.connection.recv(), tuple):
                self.progress(*answer)
        except (EOFError, OSError):
            worker.process.join(PATIENCE)
            reason = f"the worker process ended ({_ending(worker.process)}); too little memory is the usual cause"
            answer = Measurement(FAILED, reason=reason, seconds=time.perf_counter() - start)
            worker = self.all[worker.number] = self._started(worker.number)
            worker.connection.send(self.facts)
        self.idle.put(worker)
        return answer

    def __exit__(self, *_: object) -> None:
        for worker in self.all.values():
            worker.connection.close()  # ends one that waits
            if worker not in self.idle.queue:
                worker.process.terminate()
        for worker in self.all.values():
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
        self.folder.cleanup()

    def _started(self, number: int) -> Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        arguments = (theirs, self.lesson, threads, Path(self.folder.name), number, self.count)
        process = context.Process(target=_work, args=arguments, daemon=True, name=f"kdsearch worker {number}")
        process.start()
        theirs.close()
        return Worker(number, process, ours)


def _work(connection: Connection, lesson: Lesson, threads: int, folder: Path, number: int, count: int) -> None:
    """A process's life: wait for the facts, load, evaluate what comes, end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with what a process does at its end
    torch.set_num_threads(threads)
    gate, told = Gate(folder, number, count), time.monotonic()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal told
        gate.step_aside()
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            connection.send((stage, done, total))

    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        facts = connection.recv()
        bench = objective.prepare(lesson.spec, lesson.space, lesson.base, lesson.extra, facts=facts)
        bench = replace(bench, quiet=gate.quiet)
        while True:
            candidate, seed, train_anyway = connection.recv()
            with gate.own:
                answer = measured(objective.evaluate, candidate, bench, seed, train_anyway, progress)
            connection.send(answer)


def _ending(process: BaseProcess) -> str:
    code = process.exitcode
    return "still there" if code is None else f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
