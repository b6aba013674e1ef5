"""What the commands say on a study whose only trial, a baseline, breaks a limit; what they do stands in test_readme."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsearch import commands
from tests import tiny


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("studied")
    spec = {**tiny.study(folder), "limits": {"accuracy_relative": 1.0}, "train": {"steps": 2}}
    path = tiny.write_yaml(folder / "study.yaml", {**spec, "proxy": {"steps": 1}, "search": {"minutes": 0.0001}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDSEARCH_CACHE", str(folder / "cache"))
        commands.run_study(path)
        yield path


def test_a_trial_that_breaks_a_limit_is_trained_with_a_warning(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.train_pick(studied, "0")
    said = capsys.readouterr().out
    assert said.startswith("Trial 0 breaks a limit of the study (accuracy_relative ")


def test_a_run_whose_budget_is_used_up_says_so_and_why_its_front_is_empty(studied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run_study(studied)
    said = capsys.readouterr().out
    assert "The front is empty: the budget went into 1 hand-made baseline" in said
    assert "of 0.0001 minutes. To go on, raise --minutes." in said


def test_a_later_session_leaves_what_was_timed_as_it_was(studied: Path) -> None:
    place = studied.parent / "tiny" / "study.json"
    first = json.loads(place.read_text())
    commands.run_study(studied)
    again = json.loads(place.read_text())
    assert (again["teacher"], again["rate"]) == (first["teacher"], first["rate"])
