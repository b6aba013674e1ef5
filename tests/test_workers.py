"""Real processes on a tiny study."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kdsearch import objective, space_file, workbench, workers
from kdsearch.candidate import Candidate, Recipe, Term, Training
from kdsearch.machine import accelerator
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, NobodyLeftError, measured
from kdsearch.study_file import StudySpec
from kdsearch.workers import Gate, Lesson, Workers
from tests import tiny

KD = Candidate(tiny.narrower(), distillation=Recipe("kd", 0.5, (Term("kd"),)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[workbench.Bench]:
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        content = {**tiny.study(folder), "proxy": {"steps": 6, "batch_tokens": 256, "transfer_share": 0.3}}
        yield workbench.prepare(StudySpec.model_validate(content), space_file.load(folder / "space.yaml"), folder, [])


@pytest.fixture
def lesson(bench: workbench.Bench) -> Lesson:
    space = space_file.load(bench.base / "space.yaml")
    return Lesson(bench.spec, space, bench.base, [], bench.known, accelerator("cpu").mixed_precision)


def endless(lesson: Lesson) -> Lesson:
    return replace(lesson, spec=lesson.spec.model_copy(update={"proxy": lesson.spec.proxy.model_copy(update={"steps": 1_000_000})}))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_worker_finds_what_is_found_without_one(bench: workbench.Bench, lesson: Lesson) -> None:
    candidates = [KD, replace(KD, training=Training(2e-3)), replace(KD, architecture=tiny.narrower(layers=1))]
    with Workers(lesson, 2) as crew, ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda candidate: crew.evaluate(Order(candidate, 5)), candidates))
    assert [one.state for one in found] == [COMPLETE] * 3
    for candidate, one in zip(candidates, found, strict=True):
        alone = objective.evaluate(Order(candidate, 5), bench)
        assert (one.accuracy, one.divergence, one.parameters) == (alone.accuracy, alone.divergence, alone.parameters)
        assert one.latency_relative is not None


def test_a_worker_keeps_its_files_where_this_process_does_now(lesson: Lesson, tmp_path: Path) -> None:
    with Workers(replace(lesson, cache=tmp_path / "elsewhere"), 1):
        assert (tmp_path / "elsewhere" / "outputs").is_dir()


def test_a_killed_worker_fails_its_trial_alone_and_is_replaced(lesson: Lesson) -> None:
    told = []
    with Workers(endless(lesson), 1, lambda *event: told.append(event)) as crew, ThreadPoolExecutor(1) as threads:
        first = threads.submit(crew.evaluate, Order(KD, 0))
        wait_for(lambda: bool(told))
        crew.lesson = lesson  # the next process has a few steps only
        os.kill(crew.all[0].process.pid or 0, signal.SIGKILL)
        lost = first.result(timeout=120)
        assert crew.evaluate(Order(KD, 0)).state == COMPLETE
    assert lost.state == FAILED
    assert "SIGKILL" in (lost.reason or "")
    assert lost.seconds > 0


def test_where_no_worker_can_be_started_any_more_nobody_is_told_that_a_trial_failed(
    lesson: Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def none_left(*_: object) -> None:
        raise OSError("planted")

    with Workers(endless(lesson), 1, lambda *event: told.append(event)) as crew, ThreadPoolExecutor(1) as threads:
        running = threads.submit(measured, crew.evaluate, Order(KD, 0))
        wait_for(lambda: bool(told))
        monkeypatch.setattr(crew, "_started", none_left)
        os.kill(crew.all[0].process.pid or 0, signal.SIGKILL)
        assert running.result(timeout=120).state == FAILED  # its own process is gone, and so is the next
        with pytest.raises(NobodyLeftError, match="tried again when the same command goes on"):
            measured(crew.evaluate, Order(KD, 0))


PARENT = """
import os, pickle, sys, threading
from kdsearch.workers import Workers
if __name__ == "__main__":
    lesson, order = pickle.load(open(sys.argv[1], "rb"))
    with Workers(lesson, 1, lambda *_: print(crew.all[0].process.pid, flush=True)) as crew:
        crew.evaluate(order)
"""


def test_workers_end_with_a_parent_that_is_killed(lesson: Lesson, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "lesson").write_bytes(pickle.dumps((endless(lesson), Order(KD, 0))))
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "lesson")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = psutil.Process(int(parent.stdout.readline()))  # it trains
        parent.kill()
    worker.wait(timeout=30)


def test_the_end_stops_what_runs_and_starts_nothing(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    started, told = [], []
    start = Workers._started
    monkeypatch.setattr(Workers, "_started", lambda crew, number: started.append(number) or start(crew, number))
    with ThreadPoolExecutor(2) as threads:
        with Workers(endless(lesson), 1, lambda *event: told.append(event)) as crew:
            running = [threads.submit(crew.evaluate, Order(replace(KD, training=Training(rate)), 0)) for rate in (1e-3, 2e-3)]
            wait_for(lambda: bool(told))  # one runs, one waits
        assert all(isinstance(one.exception(timeout=120), RuntimeError) for one in running)
    assert started == [0]
    assert not crew.all[0].process.is_alive()


def test_a_worker_that_cannot_load_is_told_before_any_trial(lesson: Lesson) -> None:
    absent = replace(lesson, spec=lesson.spec.model_copy(update={"teacher": lesson.spec.teacher.model_copy(update={"model": "./absent"})}))
    with pytest.raises(RuntimeError, match=r"cannot start: \w+Error: .*absent.*--workers 1"), Workers(absent, 1):
        raise AssertionError


def test_what_a_worker_raises_is_its_trial_s_reason(lesson: Lesson) -> None:
    with Workers(lesson, 1) as crew:
        found = crew.evaluate(Order(replace(KD, training=Training(1e30)), 0))
        assert crew.evaluate(Order(KD, 0)).state == COMPLETE
    assert found.state == FAILED
    assert (found.reason or "").startswith("DivergedError")
    assert "in fit" in (found.traceback or "")


def test_a_worker_keeps_to_its_share_of_the_memory(lesson: Lesson) -> None:
    with Workers(replace(lesson, most_bytes=1e6), 1) as crew:
        found = crew.evaluate(Order(KD, 0))
        assert crew.all[0].process.is_alive()
    assert found.state == FAILED
    assert (found.reason or "").startswith("TooMuchMemoryError")


def test_while_one_is_quiet_the_others_stand_still(tmp_path: Path) -> None:
    steps, end = [0, 0], threading.Event()

    def computes(number: int) -> None:
        gate = Gate(tmp_path, number, 3)
        with gate.own:
            while not end.is_set():
                steps[number] += 1
                gate.step_aside()

    threads = [threading.Thread(target=computes, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    gate = Gate(tmp_path, 2, 3)
    with gate.own:
        for _ in range(3):
            with gate.quiet():
                before = list(steps)
                time.sleep(0.1)
                assert steps == before
            time.sleep(0.2)
            assert all(now > then for now, then in zip(steps, before, strict=True))
    end.set()
    for thread in threads:
        thread.join()


def test_one_worker_a_core_unless_the_study_says_otherwise(lesson: Lesson) -> None:
    assert workers.count_for(lesson.spec) == 1  # the tests run on one thread
    plan = lesson.spec.search.model_copy(update={"workers": 3})
    assert workers.count_for(lesson.spec.model_copy(update={"search": plan})) == 3
