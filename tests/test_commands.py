"""What the commands say on a study whose only trained student, a baseline, breaks a limit, what confirm does, and how a study
starts from another; the rest stands in test_readme."""

import json
import multiprocessing
import re
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kdsearch import commands, records, study_store
from kdsearch.candidate import from_dict
from kdsearch.display import Display
from kdsearch.errors import UserError
from kdsearch.order import Order
from kdsearch.records import Measurement
from kdsearch.report import front, study_folder
from tests import tiny


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("studied")
    spec = {**tiny.study(folder), "limits": {"parameters": 2_000}, "train": {"steps": 2}}
    path = tiny.write_yaml(folder / "study.yaml", {**spec, "proxy": {"steps": 1}, "search": {"trials": 2, "startup_trials": 2}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "guesses", lambda *_: [])
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        commands.run_study(path)
        yield path


def test_a_trial_that_breaks_a_limit_is_trained_with_a_warning(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.train_pick(studied, "1")
    said = capsys.readouterr().out
    assert said.startswith("Trial 1 breaks a limit of the study (parameters ")


def test_a_run_whose_budget_is_used_up_says_so_and_why_its_front_is_empty(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run_study(studied)
    said = capsys.readouterr().out
    assert "The front is empty: no student is trained and inside the limits (the last: parameters " in said
    assert "The budget is used up: 2 of 2 trials. To go on, raise --trials." in said


def test_a_later_session_leaves_what_was_timed_as_it_was(studied: Path) -> None:
    place = studied.parent / "tiny" / "study.json"
    first = json.loads(place.read_text())
    commands.run_study(studied)
    again = json.loads(place.read_text())
    assert (again["teacher"], again["rate"]) == (first["teacher"], first["rate"])


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study with a front: four guesses, three baselines and a trial of the sampler."""
    folder = tmp_path_factory.mktemp("searched")
    spec = {
        **tiny.study(folder),
        "limits": {"latency_relative": None},
        "train": {"steps": 4},
        "search": {"trials": 8, "startup_trials": 1, "workers": 1, "rungs": []},
    }
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
    assert "4 steps, 1 seed" in capsys.readouterr().out
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
    written = json.loads((place.parent / "front.json").read_text())
    assert written["picks"] == second["picks"]
    assert written["confirmed"] == [row for row in second["students"] if row["on_front"]]
    commands.run_study(searched)
    assert "kdsearch confirm" not in capsys.readouterr().out


def knee_of(study: Path) -> int:
    """By the short distillations, which decide who is trained in full."""
    return front.short_picks(study_folder.load(study))["knee"]


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
    with pytest.raises(UserError, match=r"front to confirm; the front is empty \(2 trials\); go on with 'kdsearch run'"):
        commands.confirm_study(studied)
    assert not (studied.parent / "tiny" / "confirmed.jsonl").exists()


def with_finalists(study: Path, name: str, **search: Any) -> Path:
    """The study of the same folder under another name, with finalists, which need no fine-tuning any more."""
    content = yaml.safe_load(study.read_text())
    more = {"finalists": 1, "finalist_seeds": 2, **search}
    return tiny.write_yaml(study.parent / f"{name}.yaml", {**content, "name": name, "search": {**content["search"], **more}})


def lines_of(study: Path) -> list[str]:
    place = study.parent / study.stem / "confirmed.jsonl"
    return place.read_text().splitlines() if place.exists() else []


def test_a_run_confirms_its_front_and_after_an_interruption_what_is_missing(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, evaluate, full = with_finalists(searched, "whole"), commands.objective.evaluate, []

    def killed_in_the_third(order: Order, *others: Any) -> Measurement:
        full.extend([order] if order.training else [])
        if len(full) == 3:
            raise KeyboardInterrupt
        return evaluate(order, *others)

    with monkeypatch.context() as patch:
        patch.setattr(commands.objective, "evaluate", killed_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            commands.run_study(study)
    first, trials = lines_of(study), (study.parent / "whole" / "trials.jsonl").read_text()
    assert len(first) == 2
    assert len(trials.splitlines()) == 8
    assert "kdsearch confirm" not in capsys.readouterr().out
    commands.run_study(study)
    whole = lines_of(study)
    assert whole[:2] == first
    assert (study.parent / "whole" / "trials.jsonl").read_text() == trials
    document = json.loads((study.parent / "whole" / "confirmed.json").read_text())
    assert len(document["seeds"]) == 2
    assert {row["seeds"] for row in document["students"]} == {2}
    assert len(whole) == 2 * len(document["students"])
    assert {json.loads(line)["of"] for line in whole} == {4}
    assert "4 steps, 2 seeds" in capsys.readouterr().out
    assert "The front by full trainings" in (study.parent / "whole" / "report.html").read_text(encoding="utf-8")
    # what `confirm` would do is done
    assert commands.confirm_study(study, 1, 2)["students"] == document["students"]
    assert lines_of(study) == whole


def test_a_search_ends_when_what_is_left_is_the_finalists(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = with_finalists(searched, "kept", trials=None, minutes=1000.0, finalist_seeds=1, startup_trials=10)
    monkeypatch.setattr(commands.finals, "keeper", lambda *_: lambda known: 1000.0 * 60 if len(known) > 3 else 0.0)
    commands.run_study(study)
    assert len((study.parent / "kept" / "trials.jsonl").read_text().splitlines()) == 4
    said = capsys.readouterr().out
    assert "The budget is used up: 1e+03 of 1e+03 minutes (1e+03 of them kept for the finalists). To go" in said
    assert re.search(r"full trainings of \d+ steps\nabout \S+ min: trial \d \(front.*\), .*baseline no-kd", said)
    told, rows = lines_of(study), json.loads((study.parent / "kept" / "confirmed.json").read_text())["students"]
    unreached = {f"baseline {name}" for name in ("no-kd", "distilbert", "tinybert")}
    assert unreached <= {json.loads(line)["student"] for line in told}
    assert {row["student"] for row in rows if row["trial"] is None and row["twin_of"] is None} == unreached
    assert "baseline tinybert" in (study.parent / "kept" / "report.html").read_text(encoding="utf-8")
    commands.run_study(study)
    assert lines_of(study) == told


def test_an_empty_front_has_no_finalists(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run_study(studied, overrides={"finalists": 1})
    assert "The front is empty" in capsys.readouterr().out
    assert not (studied.parent / "tiny" / "confirmed.jsonl").exists()


def test_check_says_what_is_done_and_writes_nothing(searched: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = searched.parent / "tiny"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    commands.check_study(searched)
    said = capsys.readouterr().out
    assert re.search(r"^so far +8 trials, about 0\.\d min and \S+ FLOPs of search are done; so is what comes before$", said, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    commands.check_study(with_finalists(searched, "fresh"))
    assert "so far" not in capsys.readouterr().out


def test_flops_that_the_teacher_alone_uses_up_are_refused(searched: Path) -> None:
    with pytest.raises(UserError, match=r"search\.flops: must exceed those of the teacher's answers, .*; the value is 1e\+03; raise it"):
        commands.run_study(with_finalists(searched, "small"), overrides={"flops": 1e3})


@pytest.fixture
def other(searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study of the same teacher and data with another limit, a smaller space and another seed of its sampler."""
    monkeypatch.setenv("KDSEARCH_CACHE", str(searched.parent / "cache"))
    content = yaml.safe_load(searched.read_text())
    space = tiny.space_content()
    del space["distillation"]["one_of"]["minilmv2"]
    tiny.write_yaml(searched.parent / "smaller.yaml", space)
    return tiny.write_yaml(
        searched.parent / "other.yaml",
        {**content, "name": "other", "space": "smaller.yaml", "limits": {"latency_relative": None, "accuracy_relative": 0.5}},
    )


def trials_of(folder: Path) -> list[records.Record]:
    return records.read(folder / "trials.jsonl")


def test_a_run_takes_over_what_an_earlier_study_found(
    searched: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = []
    evaluate = commands.objective.evaluate

    def counted(order: Any, *rest: Any) -> records.Measurement:
        evaluated.append(order.candidate.key())
        return evaluate(order, *rest)

    monkeypatch.setattr(commands.objective, "evaluate", counted)
    before = {from_dict(one.candidate).key(): one for one in trials_of(searched.parent / "tiny")}
    copy = Path(shutil.copytree(searched.parent / "tiny", tmp_path / "copy"))
    commands.run_study(other, tmp_path / "first", overrides={"trials": 4}, earlier_studies=[copy])
    said = capsys.readouterr().out
    found = trials_of(tmp_path / "first")
    imported = [one for one in found if one.imported_from]
    assert f"from tiny: {len(imported)} trials imported" in said
    assert f"{len(imported)} imported" in said
    assert [one.baseline for one in imported if one.baseline] == ["no-kd", "distilbert", "tinybert"]
    for one in imported:
        there = before[from_dict(one.candidate).key()].measurement
        assert (one.measurement.accuracy, one.measurement.latency_relative) == (there.accuracy, there.latency_relative)
        assert one.imported_from == f"trial {before[from_dict(one.candidate).key()].trial} of tiny"
        assert len(one.measurement.violations) == 1
    own = [one for one in found if one.imported_from is None]
    assert len(own) == 4
    assert own[0].duplicate_of is None  # the guesses are those of the earlier study, and cost nothing
    assert len(evaluated) == sum(one.duplicate_of is None for one in own) > 0
    assert not set(evaluated) & set(before)
    assert "imported" in (tmp_path / "first" / "report.html").read_text(encoding="utf-8")

    # later sessions go on with what the first took, whatever has become of the other study
    (copy / "trials.jsonl").write_text("")
    commands.run_study(other, tmp_path / "first", overrides={"trials": 5}, earlier_studies=[copy])
    shutil.rmtree(copy)
    commands.run_study(other, tmp_path / "first", overrides={"trials": 6})
    assert capsys.readouterr().out.count(f"from tiny: {len(imported)} trials imported") == 2
    commands.run_study(other, tmp_path / "second", overrides={"trials": 6}, earlier_studies=[searched, searched.parent / "tiny"])
    assert [one.candidate for one in trials_of(tmp_path / "first")] == [one.candidate for one in trials_of(tmp_path / "second")]


def test_of_a_study_with_another_proxy_the_front_is_evaluated_first(
    searched: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**yaml.safe_load(other.read_text()), "proxy": {"steps": 2, "batch_tokens": 256}, "space": "space.yaml"}
    longer = tiny.write_yaml(searched.parent / "longer.yaml", content)
    copy = Path(shutil.copytree(searched.parent / "tiny", tmp_path / "copy"))
    best = next(one.candidate for one in reversed(trials_of(copy)) if one.baseline is None)
    (copy / "confirmed.json").write_text(json.dumps({"students": [{"candidate": best, "on_front": True}]}))
    commands.run_study(longer, tmp_path / "out", overrides={"trials": 4}, earlier_studies=[copy])
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("from tiny: "))
    assert "of its front tried first" in said
    assert said.endswith("; proxy not the same")
    found = trials_of(tmp_path / "out")
    assert [one.imported_from for one in found] == [None] * 4
    assert from_dict(found[0].candidate).key() == from_dict(best).key()


def test_trials_that_need_more_memory_than_the_study_gives_fail_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    plan = {"trials": 2, "workers": 1, "trial_gigabytes": 0.001}
    commands.run_study(tiny.write_yaml(tmp_path / "study.yaml", {**tiny.study(tmp_path), "search": plan}))
    found = records.read(tmp_path / "tiny" / "trials.jsonl")
    assert [record.measurement.state for record in found] == [records.FAILED] * 2
    assert "the 0.001 GB of a trial; a smaller student, fewer proxy.batch_tokens or workers, or a larger search.trial_gigabytes" in (
        found[1].measurement.reason or ""
    )
    assert found[1].measurement.reason in capsys.readouterr().out


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
