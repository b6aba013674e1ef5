"""Which score of a short distillation ranks students as their full distillation does, and after how many steps.

Reads what benchmarks/record_curves.py recorded: candidates spread over the latencies, trained at full length with several seeds, and for
short proxies. Every score at every recorded step of those proxies whose weights are averaged, and at the end of those whose rate falls, is
held against the full accuracy and the full divergence (means over the seeds) by Kendall's tau-b: over all pairs, and over pairs within
latency bins of at least four, since a search compares students that are about equally fast. Beside them stand the parameters, the FLOPs
and the latency, which cost no training, and the ceiling: what two seeds of the full training agree by. A mean of seeds is easier to agree
with than one of them, so that what is held against the ceiling is the agreement with single seeds.

    python benchmarks/proxy.py [--curves benchmarks/curves/quickstart.jsonl] [--out benchmarks/proxy.md]

Trains nothing. The last line is JSON.
"""

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script, only this file's own folder is there

from benchmarks.replay import Row, read
from kdsearch.fidelity import LEAST, Agreement, Estimate, agreement, as_a_seed, ceiling

ROOT = Path(__file__).parents[1]
PROXY, FULL, COMPLETE, AVERAGED = "proxy", "full", "complete", "averaged"
SCORES = {"accuracy": 1, "divergence": -1, "calibrated_divergence": -1, "log_loss": -1}  # the sign that makes more better
SIZES = {"parameters": "parameters", "flops": "FLOPs", "latency": "latency"}
TRUTHS = {"accuracy": "full accuracy", "divergence": "full divergence"}


@dataclass(frozen=True)
class Told:
    """One way to rank: its name, how many candidates have it, its agreement with each truth, and its tau with single seeds of it, over all
    and within latency bins: the mean over the seeds of the proxy."""

    name: str
    count: int
    with_truth: dict[str, Agreement]
    with_a_seed: dict[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Recorded:
    """The candidates with full trainings: for each number its full rows, and for each proxy (schedule, steps) its rows with each seed that
    most candidates have."""

    full: dict[int, list[Row]]
    proxies: dict[tuple[str, int], list[dict[int, Row]]]

    @property
    def numbers(self) -> list[int]:
        """The candidates."""
        return sorted(self.full)

    def truth(self, name: str) -> dict[int, float]:
        """A score at the end of the full training, the mean over the seeds; more is better."""
        return {number: SCORES[name] * float(np.mean([last(row)[name] for row in rows])) for number, rows in self.full.items()}

    def seeds(self, name: str, numbers: Sequence[int]) -> list[list[float]]:
        """A score at the end of each full training of some candidates [candidates, seeds]; more is better."""
        return [[SCORES[name] * last(row)[name] for row in self.full[number]] for number in numbers]

    def latency(self) -> dict[int, float]:
        """Relative latency, the median over the full trainings."""
        return {number: float(np.median([row["latency"] for row in rows])) for number, rows in self.full.items()}


def last(row: Row) -> dict[str, float]:
    """The scores at the end of a training."""
    return row["curve"][str(row["of"])]


def recorded(rows: Sequence[Row]) -> Recorded:
    """Full trainings that came to their end, and the proxies of the same candidates.

    Raises:
        SystemExit: too few candidates to compare anything.
    """
    done = [row for row in rows if row["state"] == COMPLETE]
    full = {row["number"]: list[Row]() for row in done if row["kind"] == FULL}
    for row in sorted((row for row in done if row["kind"] == FULL), key=lambda row: row["seed"]):
        full[row["number"]].append(row)
    if len(full) < LEAST:
        raise SystemExit(f"{len(full)} candidates have a full training; {LEAST} are needed: let benchmarks/record_curves.py go on")
    found: dict[tuple[str, int], dict[int, dict[int, Row]]] = {}
    for row in done:
        if row["kind"] == PROXY and row["number"] in full:
            found.setdefault((row["schedule"], row["of"]), {}).setdefault(row["seed"], {})[row["number"]] = row
    most = {proxy: max(map(len, by_seed.values())) for proxy, by_seed in found.items()}
    proxies = {proxy: [some for _, some in sorted(by_seed.items()) if len(some) == most[proxy]] for proxy, by_seed in found.items()}
    return Recorded(full, proxies)


def told(name: str, by_seed: Sequence[dict[int, float]], found: Recorded) -> Told:
    """How well some values, of one seed or several of a proxy, rank the candidates that have them; intervals are of the first."""
    numbers, latency = [number for number in found.numbers if number in by_seed[0]], found.latency()
    held = {truth: _held(by_seed[0], found.truth(truth), latency, numbers) for truth in TRUTHS}
    most = max(len(rows) for rows in found.full.values())
    alone: dict[str, tuple[float | None, float | None]] = {}
    for truth in TRUTHS:
        taus = []
        for values in by_seed:
            whole = [number for number in found.numbers if number in values and len(found.full[number]) == most]
            mine, seeds = [values[number] for number in whole], found.seeds(truth, whole)
            taus.append((as_a_seed(mine, seeds), as_a_seed(mine, seeds, [latency[number] for number in whole])))
        alone[truth] = _mean([tau for tau, _ in taus]), _mean([tau for _, tau in taus])
    return Told(name, len(numbers), held, alone)


def _held(values: dict[int, float], truth: dict[int, float], latency: dict[int, float], numbers: list[int]) -> Agreement:
    return agreement(*([column[number] for number in numbers] for column in (values, truth, latency)))


def rankings(found: Recorded) -> list[Told]:
    """Every score of averaged proxies at each of their steps, of others at their end, of the full ones on their way, and sizes."""
    lines = []
    for (schedule, length), by_seed in sorted(found.proxies.items()):
        marks = sorted({int(step) for rows in by_seed for row in rows.values() for step in row["curve"]})
        for step in marks if schedule == AVERAGED else [length]:
            for score, sign in SCORES.items():
                at = [{number: row["curve"].get(str(step), {}) for number, row in rows.items()} for rows in by_seed]
                values = [{number: sign * scores[score] for number, scores in some.items() if score in scores} for some in at]
                lines.append(told(f"{score}, {schedule}, step {step} of {length}", values, found))
    lines += on_the_way(found)
    for key, name in SIZES.items():
        lines.append(told(name, [{number: float(rows[0][key]) for number, rows in found.full.items()}], found))
    return lines


def on_the_way(found: Recorded) -> list[Told]:
    """Every score on the way of the full training, with its slower schedule, held against the end of another seed's."""
    most = max(len(rows) for rows in found.full.values())
    whole = [number for number in found.numbers if len(found.full[number]) == most]
    latency, unknown, lines = [found.latency()[number] for number in whole], Agreement(*[Estimate()] * 4), list[Told]()
    if most < 2:
        return lines
    marks = set.intersection(*({int(step) for step in row["curve"]} - {row["of"]} for number in whole for row in found.full[number]))
    for step in sorted(marks):
        for score, sign in SCORES.items():
            if not all(score in row["curve"][str(step)] for number in whole for row in found.full[number]):
                continue
            held: dict[str, tuple[float | None, float | None]] = {}
            for truth in TRUTHS:
                ends = np.array(found.seeds(truth, whole))
                taus = []
                for seed in range(most):
                    here = [sign * found.full[number][seed]["curve"][str(step)][score] for number in whole]
                    others = np.delete(ends, seed, axis=1)
                    taus.append((as_a_seed(here, others), as_a_seed(here, others, latency)))
                held[truth] = _mean([tau for tau, _ in taus]), _mean([tau for _, tau in taus])
            length = found.full[whole[0]][0]["of"]
            lines.append(Told(f"{score}, step {step} of {length}, another seed's", len(whole), dict.fromkeys(TRUTHS, unknown), held))
    return lines


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def ceilings(found: Recorded) -> dict[str, dict[str, float | None]]:
    """tau between seeds of the full training, over all and within latency bins, of the candidates that have every seed."""
    most = max(len(rows) for rows in found.full.values())
    whole = [number for number in found.numbers if len(found.full[number]) == most]
    latency = [found.latency()[number] for number in whole]
    seeds = {name: found.seeds(name, whole) for name in TRUTHS}
    return {name: {"all": ceiling(values), "within": ceiling(values, latency)} for name, values in seeds.items()}


def result_of(rows: Sequence[Row]) -> dict[str, Any]:
    """All numbers of the document."""
    found = recorded(rows)
    some = [row for rows in found.full.values() for row in rows]
    return {
        "candidates": len(found.full),
        "steps": sorted({row["of"] for row in some}),
        "seeds": sorted({row["seed"] for row in some}),
        "ceiling": ceilings(found),
        "rankings": [asdict(one) for one in rankings(found)],
    }


def document(result: dict[str, Any], command: str) -> str:
    """benchmarks/proxy.md."""
    head = "".join(f" {name}: tau | within latency bins | one seed: tau, within |" for name in TRUTHS.values())
    lines = [f"| ranked by | candidates |{head}", f"|---|---|{'---|---|---|' * len(TRUTHS)}"]
    for row in result["rankings"]:
        cells = [row["name"], str(row["count"])]
        for name in TRUTHS:
            cells += [_cell(Estimate(**row["with_truth"][name][part])) for part in ("tau", "tau_within")]
            cells.append(", ".join(map(_plain, row["with_a_seed"][name])))
        lines.append(f"| {' | '.join(cells)} |")
    tops = [cell for name in TRUTHS for cell in ("", "", ", ".join(_plain(result["ceiling"][name][part]) for part in ("all", "within")))]
    lines.append(f"| another seed of the full training (ceiling) | | {' | '.join(tops)} |")
    return f"""# Which short distillation ranks students as the full one does

`{command}`

{result["date"]}; {result["machine"]}.

{result["candidates"]} candidates that benchmarks/record_curves.py trained for {_listed(result["steps"])} steps (seeds
{_listed(result["seeds"])}), and for short proxies. Kendall's tau-b with its 95 % bootstrap interval over candidates: over all pairs, and
over pairs within latency bins of at least four candidates; and with one seed instead of the mean of {len(result["seeds"])}, which is what
the ceiling is to be compared with (mean over the proxy's seeds, where it has two; the intervals are of the first). Divergences and
the log loss count with their sign turned, so that more is better. Of averaged proxies a quarter of the rows is scored before the end.

{chr(10).join(lines)}

{" ".join(conclusions(result))}

## What limits it

One teacher and one task. The intervals are those of few candidates and wide, and the best of many rows is flattered by chance. Rows share
their candidates, so that two of them may differ by less than their intervals and yet differ. The same validation rows score
the proxy and the full training.
"""


def conclusions(result: dict[str, Any]) -> list[str]:
    """Which score at which step ranks one seed best, within latency bins where there are enough candidates, against sizes and ceiling."""
    said = []
    for truth, name in TRUTHS.items():
        within = any(row["with_a_seed"][truth][1] is not None for row in result["rankings"])
        where = "within latency bins" if within else "over all"
        known = [(row["with_a_seed"][truth][int(within)], row["name"]) for row in result["rankings"]]
        sizes = [one for one in known if one[0] is not None and one[1] in SIZES.values()]
        scores = [one for one in known if one[0] is not None and one[1] not in SIZES.values()]
        if scores and sizes:
            best, size, top = max(scores), max(sizes), result["ceiling"][truth]["within" if within else "all"]
            seeds = "" if top is None else f"; two seeds agree by {top:.2f}"
            said.append(
                f"The {name} of one seed is ranked best, {where}, by {best[1]} ({best[0]:.2f}; of the sizes by {size[1]}, "
                f"{size[0]:.2f}{seeds})."
            )
    return said


def _cell(found: Estimate) -> str:
    if found.value is None or found.low is None or found.high is None:
        return "–"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def main() -> None:
    """Rank, and write the table."""
    parser = argparse.ArgumentParser(description="How well short distillations rank students, by recorded trainings.")
    parser.add_argument("--curves", type=Path, default=ROOT / "benchmarks" / "curves" / "quickstart.jsonl")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "proxy.md")
    options = parser.parse_args()
    result = {
        **result_of(read(options.curves)),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}, numpy {np.__version__}; it ranks only, the trainings were recorded",
        "date": datetime.date.today().isoformat(),
    }
    options.out.write_text(document(result, shlex.join(["python", *sys.argv])), encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
