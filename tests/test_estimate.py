import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdsearch import check, estimate
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
        ({"minutes": 1e6}, r"\d{5,} or more candidates"),
        ({"minutes": 10, "trials": 10**6}, r"\d{1,5} or more candidates, 1000000 at most \(search\.trials\)"),
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
