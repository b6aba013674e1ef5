import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdsearch import check, estimate, rungs
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("estimated")
    tiny.write_yaml(place / "study.yaml", tiny.study(place))
    return place


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that always is as slow: seconds become minutes."""
    monkeypatch.setattr(estimate, "matrix_product_rate", lambda: 1e6)


def described(folder: Path, start: dict[str, Any] | None = None, **search: Any) -> dict[str, str]:
    tiny.write_yaml(folder / "space.yaml", {**tiny.space_content(), **({"initialization": start} if start else {})})
    content = yaml.safe_load((folder / "study.yaml").read_text())
    return estimate.describe(check.open_files(tiny.write_yaml(folder / "other.yaml", {**content, "search": search})))


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ({"minutes": 1e6, "trials": 7}, r"7 candidates \(search\.trials\)"),
        ({"minutes": 1e6}, r"\d{5,} candidates by their training alone"),
        ({"minutes": 10, "trials": 10**6}, r"\d{1,5} candidates by their training alone, 1000000 at most \(search\.trials\)"),
    ],
)
def test_no_more_candidates_are_told_than_are_run(search: dict[str, Any], expected: str, folder: Path) -> None:
    assert re.search(rf"without limits, {expected}$", described(folder, **search)["search"])


def test_calibration_is_told_where_some_start_needs_it(folder: Path) -> None:
    assert "calibration" not in described(folder, {"layers": "last", "width": "slice"})["before"]
    told = [described(folder, {"layers": "removal", "width": width})["before"] for width in ("slice", "pca")]
    found = [re.search(r"min of caching, ([\d.]+) min of calibration, once", text) for text in told]
    minutes = [float(match[1]) for match in found if match]
    assert 0 < minutes[0] < minutes[1]


def test_the_plan_names_rungs_finalists_and_flops(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rungs, "LEAST", 1)
    told = described(folder, minutes=1e6, rungs=[0.4], eta=3.0)
    many = re.search(r"(\d+) candidates by their training alone$", told["search"])
    behind = re.fullmatch(r"of these about (\d+) go on behind step 1", told["rungs"])
    assert many
    assert behind
    assert int(behind[1]) == pytest.approx(int(many[1]) / 3, abs=1)
    assert re.fullmatch(r"about \S+ of search, \S+ of them the teacher's answers \(not its fine-tuning\)", told["FLOPs"])
    assert "finalists" not in told
    assert "but" not in told
    short = described(folder, minutes=1e6, finalists=2, finalist_seeds=3, rungs=[])
    assert "rungs" not in short
    assert short["finalists"].startswith("2, the knee without distillation and the baselines: 18 trainings of 3000 steps, about ")
    assert re.search(r"; \S+ of the finalists$", short["FLOPs"])
    assert "4 trainings of 3000 steps" in described(folder, minutes=1e6, finalists=1, baselines=False)["finalists"]


def test_a_budget_of_flops_ends_the_plan_and_one_too_small_is_told(folder: Path) -> None:
    teacher = float(described(folder)["FLOPs"].split(" of search, ")[1].split()[0])
    assert re.search(
        r"without limits, 0 candidates by their training alone \(search\.flops\)$", described(folder, flops=teacher / 2)["search"]
    )
    assert "search.flops: must exceed those of the teacher's answers" in described(folder, flops=teacher / 2)["but"]
    some = described(folder, flops=teacher * 100, minutes=1e9)
    assert re.search(r"[1-9]\d* candidates by their training alone \(search\.flops\)$", some["search"])
    assert float(some["FLOPs"].removeprefix("about ").split()[0]) == pytest.approx(teacher * 100, rel=0.1)


def test_minutes_too_few_for_the_finalists_are_told_by_check_and_before_a_run(folder: Path) -> None:
    content = yaml.safe_load((folder / "study.yaml").read_text())
    for search, expected in (
        ({"minutes": 1.0, "finalists": 2}, True),
        ({"minutes": 1e9, "finalists": 2}, False),
        ({"minutes": 1.0}, False),
    ):
        study = check.open_files(tiny.write_yaml(folder / "other.yaml", {**content, "search": search}))
        said = estimate.on_finalists(study)
        assert (said is not None) == expected
        assert (described(folder, **search).get("but") == said) or not expected
