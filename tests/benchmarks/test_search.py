"""The replayed searches, on planted trainings."""

import argparse
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from benchmarks import record_curves, replay, rungs, search
from kdsearch import check, search_space, space_file
from kdsearch.records import COMPLETE, Measurement
from kdsearch.study_file import Training
from tests import tiny

SPACE = space_file.load(tiny.REPOSITORY / "search_spaces" / "encoder.yaml")
TEACHER = {"accuracy": 0.8, "majority": 0.5, "architecture": {"layers": 6, "heads": 12, "head_size": 32, "ffn_ratio": 4}}


def row(number: int) -> dict[str, Any]:
    """Accuracy rises with layers and width, latency too; curves rise to their end, and what is better is better all along."""
    params, candidate = record_curves.drawn(SPACE, number, [])
    shape = candidate.architecture
    latency = 0.05 + shape.layers * shape.width / (6 * 384)
    head = {"number": number, "kind": "proxy", "of": 400, "schedule": "averaged", "seed": 0, "latency": latency, "params": params}
    if latency > 0.5:
        return {**head, "state": "refused", "curve": {}, "stages": {}}
    end = 0.7 + 0.15 * latency + 0.001 * (number % 40)
    curve = {
        str(step): {"accuracy": end - 10 / step, "divergence": 1 - end + 10 / step, "calibrated_divergence": 1 - end + 10 / step}
        for step in (50, 150, 400)
    }
    return {**head, "state": "complete", "curve": curve, "stages": {"training": 20.0, "scoring": 1.5, "building": 0.5, "latency": 1.0}}


@pytest.fixture
def problem(tmp_path: Path) -> search.Problem:
    path = tmp_path / "curves.jsonl"
    path.write_text("".join(replay.line(row(number), first=True) for number in range(60)))
    study = check.open_files(tiny.REPOSITORY / "studies" / "quickstart.yaml")
    return search.problem_of(study, path, TEACHER, trainings=12)


def test_costs_are_in_steps_of_the_recording(problem: search.Problem) -> None:
    assert problem.budget == 12 * 400
    assert problem.scoring == pytest.approx(20)  # two quarters and a whole take 1.5 s, a step 0.05 s
    assert problem.building == pytest.approx(10)
    assert problem.timing == pytest.approx(20)
    assert problem.least == pytest.approx(0.9 * 0.8)


def test_each_training_answers_once_and_the_nearest_first(problem: search.Problem) -> None:
    used: set[int] = set()
    first = problem.replay.rows[7]
    candidate = search_space.suggest(SPACE, optuna.trial.FixedTrial(first["params"]))
    assert problem.replay.nearest(candidate, used) is first
    others = [problem.replay.nearest(candidate, used) for _ in range(len(problem.replay.rows) - 1)]
    assert first not in others
    assert problem.replay.nearest(candidate, used) is None


def test_neighbours_are_alike_in_what_decides_latency_and_accuracy(problem: search.Problem) -> None:
    """Planted: shape alone decides, and nothing of the recipe does."""
    trained, errors = problem.replay, []
    for index, one in enumerate(trained.rows):
        candidate = search_space.suggest(SPACE, optuna.trial.FixedTrial(one["params"]))
        neighbour = trained.nearest(candidate, {index})
        assert neighbour is not None
        errors.append(math.log(neighbour["latency"] / one["latency"]))
    spread = np.std([math.log(one["latency"]) for one in trained.rows])
    assert np.std(errors) < 0.5 * spread


@pytest.mark.parametrize("name", ["kdsearch", "kdsearch without rungs", "Optuna TPE", "Optuna random"])
def test_a_search_stays_in_its_budget_and_ends_with_a_share_of_all_there_is(problem: search.Problem, name: str) -> None:
    found = search.run(problem, name, 0, "")
    assert 0 <= found[0] <= found[1] <= found[2] <= 1
    assert found == search.run(problem, name, 0, "")
    ledger = search.ours(problem, 0, search.OURS[name]) if name in search.OURS else search.plain_optuna(problem, 0, search.OPTUNA[name])
    assert ledger.spent >= problem.budget
    assert max(spent for spent, _ in ledger.found) < problem.budget + 500


def test_rungs_let_more_be_tried_for_the_same_steps(problem: search.Problem) -> None:
    tried = {name: len(search.ours(problem, 0, search.OURS[name]).used) for name in ("kdsearch", "kdsearch without rungs")}
    assert tried["kdsearch"] > tried["kdsearch without rungs"]


def test_the_document_says_who_is_ahead(problem: search.Problem) -> None:
    options = argparse.Namespace(study=Path("s"), curves=Path("c"), trainings=12, seeds=2)
    text = search.document({"kdsearch": [[0.1, 0.2, 0.6], [0.1, 0.2, 0.8]], "other": [[0.1, 0.1, 0.3], [0.1, 0.1, 0.5]]}, problem, options)
    assert "| other | 0.100 ± 0.000 | 0.100 ± 0.000 | 0.400 ± 0.196 | +0.000 ± 0.000 | +0.100 ± 0.000 | +0.300 ± 0.000 |" in text


def test_a_recorded_row_has_the_scores_of_every_mark_and_of_the_end() -> None:
    params, candidate = record_curves.drawn(SPACE, 3, [])
    job = record_curves.Job(3, params, candidate, record_curves.PROXY, Training(steps=200), 0)
    scores = dict.fromkeys(record_curves.KEPT, 0.123456789)
    told = record_curves.row_of(job, Measurement(COMPLETE, steps=200, rungs={"50": scores}, latency_relative=0.2, **scores))
    assert set(told["curve"]) == {"50", "200"}
    assert all(values == dict.fromkeys(record_curves.KEPT, 0.12346) for values in told["curve"].values())


def test_trainings_are_read_as_they_were_written_and_a_number_is_one_candidate(tmp_path: Path) -> None:
    store, path = record_curves.Store(tmp_path / "curves.jsonl"), tmp_path / "curves.jsonl"
    whole = {"log_loss": 0.5}
    told = [{**one, "curve": {step: {**some, **whole} for step, some in one["curve"].items()}} for one in map(row, range(3))]
    told.append({**told[0], "seed": 1})
    for one in told:
        store.add(one)
    assert replay.read(path) == told
    assert [text.count("params") for text in path.read_text().splitlines()] == [1, 1, 1, 0]
    with path.open("a") as stream:
        stream.write(replay.line({**told[0], "params": {"layers": 1}}, first=True))
    with pytest.raises(SystemExit, match="number 0 stands for more than one candidate"):
        replay.read(path)


def test_another_proxy_is_recorded_of_the_same_candidates(tmp_path: Path) -> None:
    store, near = record_curves.Store(tmp_path / "curves.jsonl"), [record_curves.drawn(SPACE, 1, [])[0]]
    store.add({**row(7), "params": (params := record_curves.drawn(SPACE, 7, near)[0])})
    assert record_curves.of_number(SPACE, 7, [], store)[0] == params != record_curves.drawn(SPACE, 7, [])[0]
    assert record_curves.of_number(SPACE, 8, near, store) == record_curves.drawn(SPACE, 8, near)
    candidate = search_space.suggest(SPACE, optuna.trial.FixedTrial(params))
    jobs = [record_curves.Job(7, params, candidate, record_curves.PROXY, Training(steps=n), 0) for n in (400, 200)]
    jobs.append(record_curves.Job(7, params, candidate, record_curves.PROXY, Training(steps=400, schedule="linear"), 0))
    assert [store.done(job) for job in jobs] == [True, False, False]


def test_near_the_front_two_parameters_are_drawn_anew() -> None:
    near = record_curves.drawn(SPACE, 1, [])[0]
    for number in range(20):
        params = record_curves.drawn(SPACE, number, [near])[0]
        kept = sum(params.get(name) == value for name, value in near.items() if not name.startswith("distillation."))
        assert kept >= sum(not name.startswith("distillation.") for name in near) - 2


def test_those_of_full_length_are_spread_over_the_latencies(tmp_path: Path) -> None:
    store = record_curves.Store(tmp_path / "curves.jsonl")
    for number in range(60):
        store.add(row(number))
    proxy = Training(steps=400)
    chosen = record_curves.spread(store, 8, proxy)
    everyone = sorted(record_curves.proxies(store, proxy), key=lambda one: one["latency"])
    places = sorted(everyone.index(one) for one in chosen)
    assert len(places) == 8
    assert max(later - place for place, later in itertools.pairwise(places)) <= 2 * len(everyone) / 8 + 1
    store.add({**chosen[0], "kind": record_curves.FULL})
    assert chosen[0]["number"] in {one["number"] for one in record_curves.spread(store, 3, proxy)}
    assert len(record_curves.Store(tmp_path / "curves.jsonl").rows) == 61


def test_a_score_that_ranks_as_the_end_does_keeps_the_whole_front(problem: search.Problem) -> None:
    found = rungs.table(problem.replay, 0.7)
    assert {(row["steps"], row["score"]) for row in found} == {(step, name) for step in (50, 150) for name in replay.SCORES}
    for row in found:
        assert row["tau"] == pytest.approx(1)
        assert row["front"] > 0
        assert row["eta 2"] >= row["eta 3"]
        assert row["eta 2"] == row["front"] or row["front"] > len(problem.replay.trained) / 2
    worse = [
        {**one, "curve": {step: {**told, "divergence": -told["divergence"]} for step, told in one["curve"].items()}}
        for one in problem.replay.rows
    ]
    turned = rungs.table(replay.Replay(worse, problem.replay.space, 400), 0.7)
    assert [row["tau"] for row in turned if row["score"] == "divergence"] == pytest.approx([-1, -1])
    assert "| 50 | calibrated divergence | 1.00 |" in rungs.document(found, problem.replay, "the command")
