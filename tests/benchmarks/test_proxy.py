"""Planted trainings: of these the divergence ranks as the full training does, the accuracy is noise, and size is latency."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import proxy
from benchmarks.replay import line

COUNT = 24


def row(number: int, kind: str, steps: int, seed: int, curve: dict[str, dict[str, float]], state: str = "complete") -> dict[str, Any]:
    schedule = "averaged" if (kind, steps) == ("proxy", 200) else "linear"
    latency = 0.05 + 0.02 * number
    sizes = {"latency": latency, "parameters": int(1e7 * latency), "flops": 1e8 * latency}
    return {
        "number": number,
        "params": {"layers": number},
        "kind": kind,
        "of": steps,
        "schedule": schedule,
        "seed": seed,
        "state": state,
        "curve": curve,
        **sizes,
    }


def planted(full_seeds: int = 2) -> list[dict[str, Any]]:
    random, rows = np.random.default_rng(0), []
    quality = random.permutation(COUNT) / COUNT
    noise = random.permutation(COUNT) / COUNT
    for number in range(COUNT):
        good, bad = float(quality[number]), float(noise[number])
        end = {"accuracy": good, "divergence": 1 - good, "calibrated_divergence": 1 - good, "log_loss": 1 - good}
        early = {"accuracy": bad, "divergence": bad, "log_loss": bad}
        short = {"accuracy": bad, "divergence": 2 - good, "log_loss": 1 + bad}  # an older row
        rows.append(row(number, "proxy", 200, 0, {"100": early, "200": {**short, "calibrated_divergence": 2 - good}}))
        rows.append(row(number, "proxy", 200, 1, {"100": early, "200": {**early, "accuracy": good}}))
        rows.append(row(number, "proxy", 400, 0, {"200": early, "400": short}))
        rows += [row(number, "full", 2000, seed, {"1000": early, "2000": end}) for seed in range(full_seeds)]
    rows.append(row(0, "proxy", 400, 1, {"400": {"divergence": -1e9}}))  # a seed that the others do not have
    other = row(COUNT, "proxy", 200, 0, {"200": early})  # without a full training
    failed = row(COUNT + 1, "full", 2000, 0, {}, "failed")
    return [other, failed, row(COUNT + 2, "proxy", 200, 0, {}, "refused"), *rows]


def taus(result: dict[str, Any], truth: str = "accuracy", part: str = "tau") -> dict[str, float | None]:
    return {one["name"]: one["with_truth"][truth][part]["value"] for one in result["rankings"]}


def test_the_score_that_was_planted_is_found() -> None:
    result = proxy.result_of(planted())
    assert (result["candidates"], result["steps"], result["seeds"]) == (COUNT, [2000], [0, 1])
    for truth in ("accuracy", "divergence"):
        for part in ("tau", "tau_within"):
            found = taus(result, truth, part)
            assert found["divergence, averaged, step 200 of 200"] == found["divergence, linear, step 400 of 400"] == pytest.approx(1.0)
            assert found["calibrated_divergence, averaged, step 200 of 200"] == pytest.approx(1.0)
            assert abs(found["accuracy, averaged, step 200 of 200"] or 0.0) < 0.6  # of seed 0, not the perfect one of seed 1
            assert found["parameters"] == found["latency"]
    counts = {one["name"]: one["count"] for one in result["rankings"]}
    assert counts["calibrated_divergence, averaged, step 100 of 200"] == 0
    assert "accuracy, linear, step 200 of 400" not in counts
    alone = {one["name"]: one["with_a_seed"]["accuracy"] for one in result["rankings"]}
    assert alone["divergence, linear, step 400 of 400"] == pytest.approx((1.0, 1.0))
    assert alone["calibrated_divergence, averaged, step 200 of 200"] == pytest.approx((1.0, 1.0))
    noise = taus(result)["accuracy, averaged, step 200 of 200"] or 0.0
    assert alone["accuracy, averaged, step 200 of 200"][0] == pytest.approx((noise + 1) / 2)  # the mean of two seeds
    on_the_way = alone["accuracy, step 1000 of 2000, another seed's"]
    assert on_the_way == pytest.approx(alone["accuracy, averaged, step 100 of 200"])  # the same planted noise
    assert abs(on_the_way[0] or 0.0) < 0.6
    assert result["ceiling"] == {name: {"all": pytest.approx(1.0), "within": pytest.approx(1.0)} for name in ("accuracy", "divergence")}


def test_the_document_is_written_and_ends_with_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    curves, out = tmp_path / "curves.jsonl", tmp_path / "proxy.md"
    curves.write_text("".join(line(one, first=True) for one in planted()))
    monkeypatch.setattr(sys, "argv", ["benchmarks/proxy.py", "--curves", str(curves), "--out", str(out)])
    proxy.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["candidates"] == COUNT
    text = out.read_text(encoding="utf-8")
    assert f"| divergence, averaged, step 200 of 200 | {COUNT} | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in text
    assert "| another seed of the full training (ceiling) | |  |  | 1.00, 1.00 |  |  | 1.00, 1.00 |" in text
    assert "The full accuracy of one seed is ranked best, within latency bins, by" in text
    assert "nan" not in text


def test_one_seed_has_no_ceiling_and_too_few_candidates_no_table() -> None:
    result = proxy.result_of(planted(1))
    assert result["ceiling"]["accuracy"] == {"all": None, "within": None}
    assert "two seeds" not in " ".join(proxy.conclusions(result))
    with pytest.raises(SystemExit, match="0 candidates have a full training; 3 are needed"):
        proxy.result_of(planted(0))
