"""The benchmarks run as the README writes them, on the smoke study and a few steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import front_figure, over_time, recipes
from kdsearch.report import front, study_folder
from tests import fake_search, tiny
from tests.report.synthetic_study import FACTS, study_records, write_study

SMOKE = tiny.REPOSITORY / "studies" / "smoke.yaml"


def test_the_naive_comparison_writes_its_table_and_ends_with_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    options = ["--study", str(SMOKE), "--steps", "2", "--candidates", "1", "--out", str(tmp_path / "naive.md")]
    done = subprocess.run(
        [sys.executable, "benchmarks/naive.py", *options], cwd=tiny.REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ratio"] > 0
    assert told["seconds_per_candidate"].keys() == told["accuracy"].keys() - {"se"} == {"naive", "kdsearch"}
    assert f"median ratio **{told['ratio']}**" in (tmp_path / "naive.md").read_text()


def test_the_recipes_are_run_once_and_tabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    for name, value in {"ROUNDS": 1, "TIMED_STEPS": 3, "FROM_RANDOM": ("hinton", "tinybert", "minilmv2")}.items():
        monkeypatch.setattr(recipes, name, value)
    out, work = tmp_path / "recipes.md", tmp_path / "work"
    options = ["--study", str(SMOKE), "--steps", "2", "--seeds", "1", "--work", str(work), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["recipes.py", *options])
    recipes.main()
    trained = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" s")]
    assert len(trained) == len(recipes.recipes()) + 3
    text = out.read_text()
    assert all(f"| {name} | uniform |" in text for name in recipes.recipes())
    assert all(claim in text for _, _, claim in recipes.CLAIMS)
    recipes.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1  # nothing was trained again
    assert json.loads(lines[0])["cost"]["hinton"] == 1.0


def test_the_readme_s_table_is_that_of_the_study_s_folder(tmp_path: Path) -> None:
    write_study(tmp_path / "reviews", study_records())
    text = front_figure.document(study_folder.load(tmp_path / "reviews"), "the command")
    assert "`the command`" in text
    assert "reviews: Pareto front" in text
    assert "students trained, for 300 steps unless they were stopped" in text


def test_what_a_trial_found_counts_from_its_end(tmp_path: Path) -> None:
    records = fake_search.run(tmp_path, 20)
    write_study(tmp_path, records, {**FACTS, "name": "fake"})
    folder = study_folder.load(tmp_path)
    when = over_time.ends(folder)
    assert when.keys() == {record.trial for record in records}
    last = max(when.values())
    assert over_time.at(folder, when, -1.0) == (0, 0.0)
    judged, volume = over_time.at(folder, when, last)
    assert judged == sum(record.baseline is None and record.duplicate_of is None for record in records)
    assert volume == front.document(folder)["hypervolume"]["value"]
    halfway = [over_time.at(folder, when, last * share / 10)[1] for share in range(11)]
    assert halfway == sorted(halfway)
    assert "| 2 |" in over_time.document([folder, folder], 2)
