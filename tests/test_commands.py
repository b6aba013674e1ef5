"""What the commands say on a study whose only trial, a baseline, breaks a limit, and what confirm does; the rest stands in test_readme."""

import json
import multiprocessing
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsearch import commands, records, study_store
from kdsearch.display import Display
from kdsearch.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("studied")
    spec = {**tiny.study(folder), "limits": {"parameters": 60_000}, "train": {"steps": 2}}
    path = tiny.write_yaml(folder / "study.yaml", {**spec, "proxy": {"steps": 1}, "search": {"trials": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        commands.run_study(path)
        yield path


def test_a_trial_that_breaks_a_limit_is_trained_with_a_warning(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.train_pick(studied, "0")
    said = capsys.readouterr().out
    assert said.startswith("Trial 0 breaks a limit of the study (parameters ")


def test_a_run_whose_budget_is_used_up_says_so_and_why_its_front_is_empty(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run_study(studied)
    said = capsys.readouterr().out
    assert "The front is empty: the budget went into 1 hand-made baseline" in said
    assert "The budget is used up: 1 of 1 trials. To go on, raise --trials." in said


def test_a_later_session_leaves_what_was_timed_as_it_was(studied: Path) -> None:
    place = studied.parent / "tiny" / "study.json"
    first = json.loads(place.read_text())
    commands.run_study(studied)
    again = json.loads(place.read_text())
    assert (again["teacher"], again["rate"]) == (first["teacher"], first["rate"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study with a front: three baselines and two trials."""
    folder = tmp_path_factory.mktemp("searched")
    spec = {**tiny.study(folder), "train": {"steps": 4}, "search": {"trials": 5, "startup_trials": 1, "workers": 1, "rungs": []}}
    path = tiny.write_yaml(folder / "study.yaml", spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        commands.run_study(path)
        yield path


def confirmed_lines(study: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (study.parent / "tiny" / "confirmed.jsonl").read_text().splitlines()]


def test_a_run_says_that_its_front_is_not_confirmed_yet(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = searched.parent / "tiny" / "confirmed.json"
    place.unlink(missing_ok=True)
    commands.run_study(searched)
    assert f"The front is by short distillations; `kdsearch confirm {place.parent}` trains its" in capsys.readouterr().out


def test_confirm_trains_what_is_missing_and_no_more(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = commands.confirm_study(searched, 2, 1)
    trained = confirmed_lines(searched)
    assert {row["student"] for row in first["students"]} == {row["student"] for row in trained}
    assert {row["role"].split("baseline ")[1] for row in first["students"] if "baseline" in row["role"]} >= {"distilbert", "tinybert"}
    assert [row["twin_of"] for row in first["students"] if row["twin_of"] is not None] == [knee_of(searched)]
    assert {row["steps"] for row in trained} == {4}
    assert not any("test" in name for row in trained for name in row)
    assert "--seeds 2" in capsys.readouterr().out
    # killed while it wrote, and started again with another seed
    place = searched.parent / "tiny" / "confirmed.jsonl"
    whole = place.read_text()
    place.write_text(whole[:-20])
    second = commands.confirm_study(searched, 2, 2)
    again = confirmed_lines(searched)
    assert again[: len(trained) - 1] == trained[:-1]
    assert len(again) == 2 * len(trained)
    assert len({(row["student"], row["seed"], row["of"]) for row in again}) == len(again)
    assert first["seeds"] == second["seeds"][:1]
    said = capsys.readouterr().out
    assert "1 to go" in said
    assert "4 steps, 2 seeds" in said
    commands.confirm_study(searched, 2, 2)
    assert confirmed_lines(searched) == again
    for row in second["students"]:
        accuracies = [line["accuracy"] for line in again if line["student"] == row["student"]]
        assert row["accuracy"] == pytest.approx(np.mean(accuracies))
        assert row["accuracy_se"] ** 2 >= np.var(accuracies, ddof=1) / 2
    assert json.loads((place.parent / "confirmed.json").read_text())["students"] == second["students"]
    report = (place.parent / "report.html").read_text(encoding="utf-8")
    assert "The front by full trainings" in report
    commands.run_study(searched)
    assert "kdsearch confirm" not in capsys.readouterr().out


def knee_of(study: Path) -> int:
    return json.loads((study.parent / "tiny" / "front.json").read_text())["picks"]["knee"]


@pytest.mark.slow
def test_confirm_trains_as_many_side_by_side_as_the_search_did(searched: Path) -> None:
    facts = searched.parent / "tiny" / "study.json"
    before = facts.read_text()
    facts.write_text(json.dumps({**json.loads(before), "workers": 2}))
    commands.confirm_study(searched, 1, 1, steps=2)
    facts.write_text(before)
    short = [row for row in confirmed_lines(searched) if row["of"] == 2]
    assert {row["state"] for row in short} == {"complete"}
    assert len(short) >= 3


def test_a_training_that_fails_is_told_and_tried_again(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(commands.objective, "evaluate", broken)
        with pytest.raises(RuntimeError, match=r"none of the .* full trainings came to its end; the last one: MemoryError: planted"):
            commands.confirm_study(searched, 1, 1, steps=1)
    assert "failed: MemoryError: planted" in capsys.readouterr().out
    assert all(row["seeds"] == 1 for row in commands.confirm_study(searched, 1, 1, steps=1)["students"])


def test_there_is_nothing_to_confirm_on_an_empty_front(studied: Path) -> None:
    with pytest.raises(UserError, match=r"front to confirm; the front is empty \(1 trials\); go on with 'kdsearch run'"):
        commands.confirm_study(studied)
    assert not (studied.parent / "tiny" / "confirmed.jsonl").exists()


def test_trials_that_need_more_memory_than_the_study_gives_fail_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    plan = {"trials": 2, "workers": 1, "trial_gigabytes": 0.001}
    commands.run_study(tiny.write_yaml(tmp_path / "study.yaml", {**tiny.study(tmp_path), "search": plan}))
    found = records.read(tmp_path / "tiny" / "trials.jsonl")
    assert [record.measurement.state for record in found] == [records.FAILED] * 2
    said = capsys.readouterr().out
    assert (
        said.count("the 0.001 of a trial; a smaller student, fewer proxy.batch_tokens or workers, or a larger search.trial_gigabytes") == 2
    )


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_storage_that_fails_is_told_and_not_what_its_results_meet_then(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    plan = {"trials": 5, "startup_trials": 1, "rungs": [], "workers": count}
    path, database = tiny.write_yaml(tmp_path / "study.yaml", {**tiny.study(tmp_path), "search": plan}), tmp_path / "tiny" / "study.db"

    def execute(statement: str) -> None:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            connection.execute(statement)

    def fails(display: Display, record: records.Record, known: Sequence[records.Record]) -> None:
        execute("ALTER TABLE study_user_attributes RENAME TO gone")
        facts.rename(aside)  # without it no results can be written, which has a message of its own
        found(display, record, known)

    found, facts, aside = Display.found, database.with_name("study.json"), tmp_path / "aside.json"
    with monkeypatch.context() as patch:
        patch.setattr(Display, "found", fails)
        with pytest.raises(RuntimeError, match=rf"storage sqlite:///{database}: no such table: study_user_attributes; finished trials are"):
            commands.run_study(path)
    assert not multiprocessing.active_children()
    before = records.read(database.with_name("trials.jsonl"))
    aside.rename(facts)
    execute("ALTER TABLE gone RENAME TO study_user_attributes")
    commands.run_study(path)
    after = records.read(database.with_name("trials.jsonl"))
    assert len(after) == 5
    assert before
    assert all(record in after for record in before)  # side by side the first may not be done first


def test_two_runs_in_two_folders_do_not_share_an_sqlite_file(studied: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{studied.parent / 'tiny' / 'study.db'}"
    with study_store.alone(url, "tiny"), ThreadPoolExecutor(1) as elsewhere:
        other = elsewhere.submit(commands.run_study, studied, tmp_path / "out", url)
        with pytest.raises(UserError, match="another kdsearch is writing to it"):
            other.result()
