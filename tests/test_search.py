import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from kdsearch import budget, records, search, search_space, space_file, study_store
from kdsearch.budget import Work
from kdsearch.candidate import Training, from_dict
from kdsearch.order import Order
from kdsearch.records import COMPLETE, FAILED, REFUSED, STOPPED, Measurement
from kdsearch.samplers import sampler_for
from kdsearch.study_file import Search
from kdsearch.view import OfTheSpace
from tests import fake_search
from tests.fake_search import quiet_load

PLAN = Search(sampler="tpe", trials=10, startup_trials=5, minutes=1000, rungs=())


def earlier(folder: Path) -> tuple[list[dict], dict[str, records.Record]]:
    """Parameters and records of a search of its own that had no baselines, as a later one takes them over."""
    folder.mkdir()
    study = study_store.open_study(f"sqlite:///{folder}/study.db", "fake", {})
    plan = PLAN.model_copy(update={"seed": 5, "trials": 9})
    found = search.search(study, fake_search.around(folder, plan), fake_search.objective, fake_search.Watcher())
    kept = [record for record in found if record.duplicate_of is None and record.measurement.state != FAILED]
    imported = {from_dict(one.candidate).key(): replace(one, imported_from=f"trial {one.trial} of earlier") for one in kept}
    return [study.trials[one.trial].params for one in kept], imported


def warm(folder: Path, starts: list[dict], imported: dict[str, records.Record], trials: int = 10, at_once: int = 1) -> list[records.Record]:
    folder.mkdir(exist_ok=True)
    study = study_store.open_study(f"sqlite:///{folder}/study.db", "fake", {})
    cold = fake_search.around(folder, PLAN.model_copy(update={"trials": trials}), fake_search.BASELINES)
    around = replace(cold, starts=starts, imported=imported)

    def noted(order: Order) -> Measurement:
        with (folder / "evaluated").open("a", encoding="utf-8") as stream:
            stream.write(order.candidate.key() + "\n")
        return fake_search.objective(order)

    return search.search(study, around, noted, fake_search.Watcher(), at_once)


def start(folder: Path, at_once: int, trials: int, flops: float) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.fake_search", str(folder), str(trials), str(at_once), str(flops)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])


def stable(found: list[records.Record]) -> list[dict]:
    """What must be equal between two searches: everything but the trial's number, which counts interrupted trials too."""
    rows = [record.to_dict() for record in found]
    first = {row["trial"]: place for place, row in enumerate(rows)}
    for row in rows:
        row["duplicate_of"] = first.get(row["duplicate_of"])
        del row["trial"], row["traceback"], row["seconds"]
    return rows


@pytest.mark.parametrize(("at_once", "trials", "flops"), [(1, 25, 0), (3, 25, 0), (1, 1000, 3000.0), (3, 1000, 3000.0)])
def test_killed_at_random_moments_it_ends_as_the_uninterrupted_search(tmp_path: Path, at_once: int, trials: int, flops: float) -> None:
    whole = fake_search.run(tmp_path / "whole", trials, at_once=at_once, flops=flops or None, starts=fake_search.STARTS)
    assert 20 < len(whole) < 100
    moments = random.Random(0)
    for _ in range(6):
        events, process = moments.randint(2, 6), start(tmp_path / "killed", at_once, trials, flops)
        for _ in range(events):
            process.stdout.readline()
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    last = start(tmp_path / "killed", at_once, trials, flops)
    _, errors = last.communicate()
    assert last.returncode == 0, errors.decode()
    ended = records.read(tmp_path / "killed" / "trials.jsonl")
    assert stable(ended) == stable(whole)
    study = quiet_load(tmp_path / "killed")
    trained = [from_dict(record.candidate).key() for record in ended if record.duplicate_of is None]
    assert len(trained) == len(set(trained))
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING])
    interrupted = [trial for trial in study.trials if trial.user_attrs.get("interrupted")]
    assert interrupted
    assert all(trial.state == optuna.trial.TrialState.FAIL and "interrupted" in trial.user_attrs["reason"] for trial in interrupted)


class KilledError(BaseException):
    """In place of a kill, where a process of its own would take seconds."""


@pytest.mark.parametrize("seed", range(12))
def test_killed_while_starts_are_asked_for_side_by_side_it_ends_as_the_uninterrupted_search(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_store, "MOST_RETRIES", 1000)  # one trial may be killed each time
    moments, starts = random.Random(seed), [{"architecture.layers": layers} for layers in (1, 2, 3, 4, 5, 6, 2, 3)]
    plan = Search(trials=14, startup_trials=3, minutes=1000, random_share=0.0)

    def session(folder: Path, event: int = 0, ask: int = 0) -> list[records.Record]:
        """Killed at an event, or between the queueing of a trial and its ask."""
        folder.mkdir(exist_ok=True)
        study = study_store.open_study(f"sqlite:///{folder / 'study.db'}", "fake", {})
        counted, real = {"event": 0, "ask": 0}, study.ask

        def count(kind: str, last: int) -> None:
            counted[kind] += 1
            if counted[kind] == last:
                raise KilledError

        def asked(*given: Any, **more: Any) -> optuna.Trial:
            count("ask", ask)
            return real(*given, **more)

        study.ask = asked
        watcher = SimpleNamespace(proposed=lambda *_: count("event", event), found=lambda *_: count("event", event))
        return search.search(study, fake_search.around(folder, plan, starts=starts), fake_search.slow, watcher, 3)

    whole = session(tmp_path / "whole")
    for _ in range(moments.randint(1, 4)):
        with suppress(KilledError):
            session(tmp_path / "killed", **{moments.choice(["event", "ask"]): moments.randint(1, 7)})
        time.sleep(0.25)  # what runs in threads of the killed session ends unheard
    assert stable(session(tmp_path / "killed")) == stable(whole)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "qmc", "random", "optuna.samplers:TPESampler"])
def test_resumed_search_equals_the_uninterrupted_one(tmp_path: Path, sampler: str) -> None:
    whole = fake_search.run(tmp_path / "whole", 14, sampler)
    for trials in (2, 7, 8, 14):
        parts = fake_search.run(tmp_path / "parts", trials, sampler)
    assert stable(parts) == stable(whole)
    assert records.read(tmp_path / "parts" / "trials.jsonl") == parts


def test_baselines_come_once_each_at_every_place_of_as_many_as_startup_trials(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 6)
    found = fake_search.run(tmp_path, 20)
    assert {place: record.baseline for place, record in enumerate(found) if record.baseline} == {
        4: "no-kd",
        9: "distilbert",
        14: "tinybert",
    }
    assert [from_dict(record.candidate) for record in found if record.baseline] == list(fake_search.BASELINES.values())


def test_starts_come_first_once_each_also_when_the_search_is_resumed(tmp_path: Path) -> None:
    wanted = [{"architecture.layers": 2, "architecture.heads": 12}, {"architecture.layers": 3}]

    def run(trials: int) -> list[records.Record]:
        study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        plan = Search(trials=trials, minutes=1000, startup_trials=1)
        around = replace(fake_search.around(tmp_path, plan, fake_search.BASELINES), starts=wanted)
        return search.search(study, around, fake_search.objective, fake_search.Watcher())

    run(3)
    found = run(8)
    shapes = [from_dict(record.candidate).architecture for record in found]
    assert [record.baseline for record in found] == [None, None, *fake_search.BASELINES, None, None, None]
    assert (shapes[0].layers, shapes[0].heads, shapes[1].layers) == (2, 12, 3)
    trials = optuna.load_study(study_name="fake", storage=f"sqlite:///{tmp_path}/study.db").trials
    assert [trial.user_attrs.get("start") for trial in trials] == [0, 1, *[None] * 6]


def test_the_same_seed_proposes_the_same_and_another_seed_does_not(tmp_path: Path) -> None:
    def proposed(folder: str, seed: int) -> list[dict]:
        plan = Search(trials=8, seed=seed, minutes=1000)
        study = study_store.open_study(f"sqlite:///{tmp_path / folder}.db", "fake", {})
        return [r.candidate for r in search.search(study, fake_search.around(tmp_path, plan), fake_search.objective, fake_search.Watcher())]

    assert proposed("a", 1) == proposed("b", 1) != proposed("c", 2)


def test_a_candidate_is_not_trained_twice(tmp_path: Path) -> None:
    space = space_file.parse(
        {
            "architecture": {"layers": {"int": [1, 3]}, "heads": 2, "head_size": 16, "ffn_ratio": 1},
            "distillation": {"one_of": {"none": {}, "other": {}}},
        }
    )
    trained = []

    def count(order):
        trained.append(order.candidate.key())
        return fake_search.objective(order)

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    found = search.search(study, fake_search.around(tmp_path, Search(trials=15, minutes=1000), space=space), count, fake_search.Watcher())
    # Two branch names for one recipe: six paths, three students.
    assert len(trained) == len(set(trained)) == 3
    assert len(found) == 15
    for record in found:
        if record.duplicate_of is not None:
            original = found[record.duplicate_of]
            assert record.measurement == original.measurement
            assert from_dict(record.candidate).key() == from_dict(original.candidate).key()


def test_an_exhausted_space_ends_the_search(tmp_path: Path) -> None:
    space = space_file.parse({"architecture": {"layers": {"int": [1, 2]}, "heads": 2, "head_size": 16, "ffn_ratio": 1}})
    study = study_store.open_study("sqlite://", "fake", {})
    found = search.search(
        study,
        fake_search.around(tmp_path, Search(minutes=1000, sampler="random"), space=space),
        fake_search.objective,
        fake_search.Watcher(),
    )
    assert len(found) <= 2 + search.MOST_DUPLICATES_IN_A_ROW + 20


def test_failing_trials_are_recorded_and_the_search_goes_on(tmp_path: Path) -> None:
    calls = []

    def sometimes(order):
        calls.append(order)
        if len(calls) == 2:
            raise MemoryError("out of memory, says the test")
        if len(calls) == 4:
            return Measurement(COMPLETE, accuracy=float("nan"), latency_relative=0.5)
        return fake_search.objective(replace(order, train_anyway=True))

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    found = search.search(study, fake_search.around(tmp_path, Search(trials=8, minutes=1000)), sometimes, fake_search.Watcher())
    assert [record.measurement.state for record in found] == [COMPLETE, FAILED, COMPLETE, FAILED, *[COMPLETE] * 4]
    assert "MemoryError: out of memory, says the test" in found[1].measurement.reason
    assert "sometimes" in found[1].measurement.traceback
    assert "not finite: accuracy nan, divergence None" in found[3].measurement.reason
    assert [trial.state.name for trial in study.trials][:4] == ["COMPLETE", "FAIL", "COMPLETE", "FAIL"]


def test_too_many_failures_in_a_row_stop_the_search_and_keep_what_was_found(tmp_path: Path) -> None:
    def broken(order):
        raise ValueError("always")

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    plan = Search(minutes=1000, max_failures_in_a_row=3)
    with pytest.raises(RuntimeError, match="3 trials failed in a row"):
        search.search(study, fake_search.around(tmp_path, plan), broken, fake_search.Watcher())
    assert len(records.read(tmp_path / "trials.jsonl")) == 3


def test_refused_candidates_are_infeasible_for_optuna_and_never_best(tmp_path: Path) -> None:
    found = fake_search.run(tmp_path, 25)
    study = quiet_load(tmp_path)
    refused = [record for record in found if record.measurement.state == REFUSED]
    assert refused
    for record in refused:
        trial = study.trials[record.trial]
        assert max(trial.constraints.values()) > 0
        # The dashboard (0.21) reads this key, and no other.
        assert trial.system_attrs["constraints"] == list(record.measurement.violations)
        assert trial.values[0] == 0.5
    best = {trial.number for trial in study.best_trials}
    assert best <= {record.trial for record in found if record.feasible}
    assert len({len(trial.constraints) for trial in study.trials if trial.state.name == "COMPLETE"}) == 1


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_baselines_leave_the_model_based_samplers_a_common_space(tmp_path: Path, sampler: str) -> None:
    """A trial without parameters among the complete ones would empty it, and every proposal would be random."""
    fake_search.run(tmp_path, 16, sampler)
    study = quiet_load(tmp_path)
    assert sum("baseline" in trial.user_attrs for trial in study.trials) == 3
    wrapped = OfTheSpace(sampler_for(Search(sampler=sampler, startup_trials=5, random_share=0), 0))
    common = wrapped.infer_relative_search_space(study, study.trials[-1])
    assert {"architecture.layers", "architecture.heads", "distillation", "training.learning_rate"} <= set(common)


def test_the_budget_is_shared_by_all_sessions(tmp_path: Path) -> None:
    now = [100.0]

    def a_second_each(order):
        now[0] += 1
        return fake_search.objective(order)

    for minutes, trials in ((3 / 60, 3), (5 / 60, 5), (5 / 60, 5)):
        study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        plan = Search(minutes=minutes, startup_trials=2, sampler="random")
        found = search.search(study, fake_search.around(tmp_path, plan), a_second_each, fake_search.Watcher(), clock=lambda: now[0])
        assert len(found) == trials
        now[0] += 1000  # between sessions nothing is charged


def test_flops_end_the_search_at_the_trial_that_spends_them_the_teacher_s_share_charged_once(tmp_path: Path) -> None:
    def run(folder: str, flops: float, teacher: float) -> list[records.Record]:
        (tmp_path / folder).mkdir(exist_ok=True)
        study = study_store.open_study(f"sqlite:///{tmp_path / folder}/study.db", "fake", {})
        plan = Search(sampler="random", flops=flops, minutes=1000)
        around = replace(fake_search.around(tmp_path / folder, plan, fake_search.BASELINES), work=Work(10, 5, teacher))
        return search.search(study, around, fake_search.objective, fake_search.Watcher())

    found, how = run("a", 400.0, 0.0), Work(10, 5)
    assert budget.flops(found, how) >= 400.0 > budget.flops(found[:-1], how)
    shorter = run("b", 400.0, 150.0)
    assert stable(shorter) == stable(found[: len(shorter)])
    assert budget.flops(shorter, how) >= 250.0 > budget.flops(shorter[:-1], how)
    assert run("c", 400.0, 400.0) == []
    assert stable(run("b", 400.0, 0.0)) == stable(found)  # goes on when there is more


def test_what_is_kept_of_the_minutes_is_not_searched_and_stays_kept_in_a_later_session(tmp_path: Path) -> None:
    now, asked = [0.0], []

    def a_second_each(order):
        now[0] += 1
        return fake_search.objective(order)

    def keep(known: Sequence[records.Record]) -> float:
        asked.append(len(known))
        return 4.0 if len(known) > 2 else 0.0

    class Slow(fake_search.Watcher):
        def found(self, record: records.Record, known: Sequence[records.Record]) -> None:
            now[0] += 0.1  # behind the seconds that are stored with a trial

    def run(minutes: float) -> list[records.Record]:
        study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
        around = replace(fake_search.around(tmp_path, Search(minutes=minutes, sampler="random")), keep=keep)
        return search.search(study, around, a_second_each, Slow(), clock=lambda: now[0])

    found = run(10.55 / 60)
    assert len(found) == 6  # at 5.5 s there is time for another; at 6.6 s the 4 that are kept are more than there are
    assert asked == list(range(7))
    now[0] += 1000
    assert run(10.55 / 60) == found
    assert len(run(12 / 60)) == 8


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_side_by_side_it_proposes_the_same_whatever_ends_first(tmp_path: Path, sampler: str) -> None:
    found = [fake_search.run(tmp_path / name, 20, sampler, at_once=3) for name in "ab"]
    assert stable(found[0]) == stable(found[1])
    ends = sorted(quiet_load(tmp_path / "a").trials, key=lambda trial: trial.datetime_complete)
    assert [trial.number for trial in ends] != list(range(20))


def test_side_by_side_as_many_run_as_may(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=60)

    def busy(order):
        together.wait()  # three at a time, or never
        return fake_search.objective(replace(order, train_anyway=True))

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    plan = Search(trials=9, minutes=1000, sampler="random")
    found = search.search(study, fake_search.around(tmp_path, plan), busy, fake_search.Watcher(), 3)
    assert [record.measurement.state for record in found] == [COMPLETE] * 9


def test_no_one_s_latency_is_that_of_a_baseline_whose_end_is_chance() -> None:
    state, candidate = search.State(), fake_search.BASELINES["no-kd"]
    own = replace(candidate, training=Training(1e-5))
    found = [Measurement(COMPLETE, accuracy=0.7, latency_relative=latency) for latency in (0.5, 0.6)]
    state.keep(0, records.Record(0, candidate.to_dict(), found[0], 0, "no-kd"))
    assert state.timed(own.architecture, 5) is None
    state.keep(1, records.Record(1, own.to_dict(), found[1], 0))
    assert state.timed(own.architecture, 5) == found[1]


def test_a_baseline_is_trained_and_shown_also_where_the_search_has_proposed_and_stopped_it(tmp_path: Path) -> None:
    """A space of one student, which is the only baseline."""
    space = space_file.parse({"architecture": {"layers": 2, "heads": 2, "head_size": 16, "ffn_ratio": 1}, "distillation": {"none": {}}})
    candidate = search_space.suggest(space, optuna.trial.FixedTrial({}))

    def stopped(order: Order) -> Measurement:
        state = COMPLETE if order.train_anyway else STOPPED
        scores = {"accuracy": 0.7, "divergence": 0.3, "calibrated_divergence": 0.3}
        return Measurement(state, latency_relative=0.5, steps=50, rungs={"50": scores}, **scores)

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    plan = Search(trials=5, startup_trials=2, minutes=1000)
    around = replace(fake_search.around(tmp_path, plan, space=space), baselines={"mine": candidate})
    found = search.search(study, around, stopped, fake_search.Watcher())
    assert [(one.baseline, one.measurement.state, one.duplicate_of) for one in found[:3]] == [
        (None, STOPPED, None),
        ("mine", COMPLETE, None),
        (None, STOPPED, 0),
    ]


def test_a_baseline_that_another_study_has_trained_comes_behind_the_starts(tmp_path: Path) -> None:
    candidate = fake_search.BASELINES["no-kd"]
    known = Measurement(COMPLETE, accuracy=0.77, latency_relative=0.5)
    imported = {candidate.key(): records.Record(4, candidate.to_dict(), known, 3, imported_from="trial 4 of earlier")}
    found = warm(tmp_path / "new", [{"architecture.layers": 2}], imported, 6)
    assert [one.baseline for one in found][:3] == [None, "no-kd", None]
    assert found[1].measurement == known


@pytest.mark.parametrize("flops", [None, 1e9])
def test_nothing_waits_for_a_baseline_but_a_budget_of_flops(tmp_path: Path, flops: float | None) -> None:
    ended, enough = [], threading.Event()

    def slow_yardsticks(order: Order) -> Measurement:
        if order.train_anyway:
            enough.wait(60.0 if flops is None else 1.0)
        found = fake_search.objective(order)
        ended.append(order.train_anyway)
        if ended.count(False) >= 12:
            enough.set()
        return found

    plan = Search(trials=14, startup_trials=3, minutes=1000, flops=flops)
    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    around = replace(fake_search.around(tmp_path, plan), baselines=dict(islice(fake_search.BASELINES.items(), 1)))
    found = search.search(study, around, slow_yardsticks, fake_search.Watcher(), 2)
    before = ended[: ended.index(True)]
    assert [record.baseline for record in found].count("no-kd") == 1
    assert len(before) >= 12 if flops is None else len(before) < 9


def test_a_trial_queued_without_a_place_holds_up_no_resumed_search(tmp_path: Path) -> None:
    fake_search.run(tmp_path, 5, at_once=3)
    study = quiet_load(tmp_path)
    study.enqueue_trial({}, user_attrs={"start": 0})  # killed before it was asked for
    study.enqueue_trial({}, user_attrs={"place": 9})  # a retry
    assert len(fake_search.run(tmp_path, 9)) == 9


def test_a_student_that_is_running_is_not_trained_beside_itself(tmp_path: Path) -> None:
    space = space_file.parse({"architecture": {"layers": {"int": [1, 2]}, "heads": 2, "head_size": 16, "ffn_ratio": 1}})
    trained = []

    def count(order):
        trained.append(order.candidate.key())
        return fake_search.slow(order)

    study = study_store.open_study(f"sqlite:///{tmp_path}/study.db", "fake", {})
    plan = Search(trials=9, minutes=1000, sampler="random")
    found = search.search(study, fake_search.around(tmp_path, plan, space=space), count, fake_search.Watcher(), 3)
    assert len(trained) == len(set(trained)) == 2
    assert len(found) == 9


def test_trials_file_is_derived_from_the_storage(tmp_path: Path) -> None:
    found = fake_search.run(tmp_path, 5)
    (tmp_path / "trials.jsonl").write_text("torn")
    assert fake_search.run(tmp_path, 5) == found == records.read(tmp_path / "trials.jsonl")
    assert all(json.loads(row)["candidate"] for row in (tmp_path / "trials.jsonl").read_text().splitlines())


def test_what_was_imported_is_told_and_never_evaluated_and_costs_no_trial(tmp_path: Path) -> None:
    starts, imported = earlier(tmp_path / "earlier")
    found = warm(tmp_path / "new", starts, imported)
    told = [record for record in found if record.imported_from]
    assert [from_dict(record.candidate).key() for record in told] == list(imported)
    assert [(one.measurement, one.seed, one.imported_from) for one in told] == [
        (one.measurement, one.seed, one.imported_from) for one in imported.values()
    ]
    assert len(found) - len(told) == 10
    evaluated = (tmp_path / "new" / "evaluated").read_text().split()
    assert not set(evaluated) & set(imported)
    assert {record.measurement.state for record in told} == {COMPLETE, REFUSED}
    study = quiet_load(tmp_path / "new")
    for record in told:
        trial = study.trials[record.trial]
        assert trial.user_attrs["imported_from"] == record.imported_from
        assert trial.params
        assert (trial.state.name, trial.user_attrs["record"]) == ("COMPLETE", record.to_dict())
    assert records.read(tmp_path / "new" / "trials.jsonl") == found


def test_the_sampler_proposes_after_imports_what_it_would_after_the_same_evaluations(tmp_path: Path) -> None:
    starts, imported = earlier(tmp_path / "earlier")

    def proposed(folder: str, known: dict[str, records.Record], trials: int) -> list[dict]:
        plan = PLAN.model_copy(update={"trials": trials})
        study = study_store.open_study(f"sqlite:///{tmp_path / folder}.db", "fake", {})
        around = replace(fake_search.around(tmp_path, plan), starts=starts, imported=known)
        return [record.candidate for record in search.search(study, around, fake_search.objective, fake_search.Watcher())]

    assert proposed("imported", imported, 6) == proposed("evaluated", {}, 6 + len(starts))


def test_a_search_with_imports_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    given = earlier(tmp_path / "earlier")
    whole = warm(tmp_path / "whole", *given)
    for moment in (1, 4, 6):
        study = study_store.open_study(f"sqlite:///{tmp_path}/parts.db", "fake", {})
        around = replace(fake_search.around(tmp_path, PLAN, fake_search.BASELINES), starts=given[0], imported=given[1])

        class Killed(fake_search.Watcher):
            left = moment

            def proposed(self, *_: object) -> None:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            search.search(study, around, fake_search.objective, Killed())
    parts = search.search(study, around, fake_search.objective, fake_search.Watcher())
    assert stable(parts) == stable(whole)


def test_side_by_side_imports_are_told_in_their_places(tmp_path: Path) -> None:
    given = earlier(tmp_path / "earlier")
    found = [warm(tmp_path / name, *given, at_once=3) for name in "ab"]
    assert stable(found[0]) == stable(found[1])
    assert sum(record.imported_from is not None for record in found[0]) == len(given[1])


@pytest.mark.parametrize("state", [COMPLETE, REFUSED])
def test_a_baseline_is_imported_only_when_it_was_trained(tmp_path: Path, state: str) -> None:
    candidate = fake_search.BASELINES["distilbert"]
    known = Measurement(state, accuracy=0.77, latency_relative=0.5, reason="as recorded")
    record = records.Record(4, candidate.to_dict(), known, 3, imported_from="trial 4 of earlier")
    found = [one for one in warm(tmp_path / "new", [], {candidate.key(): record}, 16) if one.baseline]
    assert [one.baseline for one in found] == list(fake_search.BASELINES)
    assert (found[1].measurement == known, found[1].imported_from is not None) == (state == COMPLETE, state == COMPLETE)
    evaluated = (tmp_path / "new" / "evaluated").read_text().split()
    assert (candidate.key() in evaluated) == (state != COMPLETE)


def test_a_student_that_was_imported_and_is_proposed_again_is_a_duplicate_of_this_study(tmp_path: Path) -> None:
    (first, *_), imported = earlier(tmp_path / "earlier")
    found = warm(tmp_path / "new", [first, first], imported, 5)
    again = next(record for record in found if record.duplicate_of is not None)
    assert found[again.duplicate_of].imported_from
    assert (again.imported_from, again.measurement) == (None, found[again.duplicate_of].measurement)


def test_students_that_are_too_large_do_not_end_a_search_in_which_others_are_trained(tmp_path: Path) -> None:
    plan = Search(trials=14, max_failures_in_a_row=2, rungs=())

    def searched(fits: int) -> list[records.Record]:
        seen = []

        def objective(order: Order) -> Measurement:
            seen.append(order)
            if len(seen) > fits:
                return Measurement(FAILED, reason="TooMuchMemoryError: large")
            return fake_search.objective(order)

        folder = tmp_path / str(fits)
        folder.mkdir()
        study = study_store.open_study(f"sqlite:///{folder / 'study.db'}", "fake", {})
        return search.search(study, fake_search.around(folder, plan), objective, fake_search.Watcher())

    assert [record.measurement.state for record in searched(3)][-5:] == [FAILED] * 5
    with pytest.raises(RuntimeError, match="2 trials failed in a row"):
        searched(0)
