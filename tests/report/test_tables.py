from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from kdsearch.report import study_folder, tables
from tests.report.synthetic_study import CONFIRMED, study_records, write_study


@pytest.mark.parametrize(("width", "spared"), [(80, 6), (100, 4), (120, 3), (200, 0)])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_ones(width: int, spared: int, tmp_path: Path) -> None:
    write_study(tmp_path / "reviews", study_records())
    text = StringIO()
    tables.show_front(study_folder.load(tmp_path / "reviews"), Console(file=text, width=width, force_terminal=True, color_system=None))
    said = text.getvalue()
    assert "…" not in said.split("±")[0]
    assert all(name in said for name in ("trial", "accuracy", "faster", "*knee"))
    missing = [name for name in tables.COLUMNS if name and name not in said]
    assert missing == [name for name in tables.COLUMNS if name in tables.SPARED[: len(missing)]]
    assert len(missing) <= spared


def test_the_full_trainings_and_what_they_say() -> None:
    text = StringIO()
    tables.show_confirmed(CONFIRMED, "reviews", Console(file=text, width=80))
    said = text.getvalue()
    assert "reviews: 3000 steps, 2 seeds" in said
    row = next(line for line in said.splitlines() if "front *knee" in line)
    marked = "near the front *knee *best"
    assert [cell.strip() for cell in row.split("│")[1:-1]] == [marked, "4", "0.840 ± 0.012", "0.812", "0.031", "5.00x", "4.20M", "2"]
    assert "not trained" in said
    assert said.endswith("The proxy ranks these students poorly.\n")
