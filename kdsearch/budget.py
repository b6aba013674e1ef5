"""What a search has spent of its budget, and what it keeps of its minutes for the finalists: arithmetic over records.

FLOPs are those of training: three forward passes a step. The teacher's answers, computed once and read ever after, are charged once: a
comparison at equal compute that leaves the teacher out flatters distillation (Bui et al. 2024, arXiv 2404.19319). Not charged: its
fine-tuning, latency, scoring, trials that failed, and the finalists' full trainings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, mean
from typing import Any

from kdsearch.records import Measurement, Record, own
from kdsearch.study_file import Search, StudySpec

STEP = 3  # forward passes that a step of training costs: its own, and two for the gradient
LEAST_SEARCH = 0.2  # share of the minutes that is searched, whatever the finalists take


@dataclass(frozen=True)
class Work:
    """How a trial's FLOPs are counted: tokens of a training batch, tokens that a measurement's ``flops`` belong to; and the FLOPs of the
    teacher's answers, charged once."""

    batch_tokens: int = 1
    tokens_of_flops: int = 1
    teacher: float = 0.0


@dataclass(frozen=True)
class Full:
    """The full trainings of a run: how many students, with how many seeds, for how many steps, whose batch has ``heavier`` times the
    tokens of the proxy's, side by side on so many workers."""

    students: int
    seeds: int
    steps: int
    heavier: float = 1.0
    workers: int = 1


@dataclass(frozen=True)
class Spent:
    """Seconds of search in all sessions, seconds kept for the finalists, and FLOPs, the teacher's share in them."""

    seconds: float = 0.0
    kept: float = 0.0
    flops: float = 0.0


def work(spec: StudySpec, facts: dict[str, Any]) -> Work:
    """How a study counts; ``facts`` tell its teacher's FLOPs, and on how many tokens it was asked; no padding is counted."""
    tokens_of_flops = spec.target.batch_size * spec.target.sequence_length
    return Work(spec.proxy.batch_tokens, tokens_of_flops, facts["teacher"]["flops"] / tokens_of_flops * facts["task"].get("told_tokens", 0))


def trial_flops(found: Measurement, how: Work) -> float:
    """FLOPs of a trial's training as far as it came; 0 of one that was not trained."""
    return STEP * (found.flops or 0.0) / how.tokens_of_flops * found.steps * how.batch_tokens


def trained_flops(known: Sequence[Record], how: Work) -> float:
    """FLOPs of all trainings of this study, each student's once."""
    return sum(trial_flops(record.measurement, how) for record in own(known) if record.duplicate_of is None)


def flops(known: Sequence[Record], how: Work) -> float:
    """What ``search.flops`` is compared with: all trainings, and the teacher's answers once."""
    return how.teacher + trained_flops(known, how)


def used_up(known: Sequence[Record], plan: Search, how: Work) -> bool:
    """Whether these trials have spent the study's FLOPs."""
    return plan.flops is not None and flops(known, how) >= plan.flops


def seconds_in_full(found: Measurement, full: Full) -> float:
    """What a student's full training takes if its steps take what they took in its trial, and the rest (build, latency, scores) as long."""
    training = found.stages.get("training", found.seconds)
    return training / found.steps * full.steps * full.heavier + max(0.0, found.seconds - training)


def seconds_for_finalists(
    chosen: Sequence[Measurement], tried: Sequence[Measurement], untried: Sequence[float], trained: Sequence[Measurement], full: Full
) -> float:
    """What the full trainings are expected to take: of those chosen now (finalists, and the pick once more for its twin) and of baselines
    that were ``tried`` from their trials, of others from their FLOPs.

    Of ``full.students`` who is not found yet counts as the mean of those chosen, or with none chosen of all ``trained``. Before any trial
    nothing is known, and this is 0.
    """
    pace = [seconds_in_full(found, full) for found in chosen or trained if found.steps]
    if not pace:
        return 0.0
    found = [seconds_in_full(one, full) for one in (*chosen, *tried) if one.steps]
    found += [seconds_by_flops(flops, trained, full) for flops in untried]
    missing = max(0, full.students - len(chosen))
    trainings = full.seeds * (len(found) + missing)
    return full.seeds * (sum(found) + missing * mean(pace)) / max(1, min(full.workers, trainings))


def seconds_by_flops(flops: float, trained: Sequence[Measurement], full: Full) -> float:
    """What a student of these FLOPs takes in full, by the least-squares line through those trained: a step also costs what does not
    grow with FLOPs, so that seconds are not proportional to them."""
    points = [(found.flops, seconds_in_full(found, full)) for found in trained if found.steps and found.flops]
    work, seconds = [point[0] for point in points], [point[1] for point in points]
    if len(set(work)) < 2:
        return mean(seconds_in_full(found, full) for found in trained if found.steps)
    slope, level = linear_regression(work, seconds)
    return max(0.0, level + slope * flops) if slope > 0 else mean(seconds)


def seconds_kept(seconds: float, plan: Search) -> float:
    """Of the minutes, what is kept for finalists that are expected to take so many seconds: a fifth of them is searched in any case."""
    return min(seconds, (1 - LEAST_SEARCH) * plan.minutes * 60)


def nothing_kept(known: Sequence[Record]) -> float:
    """Seconds to keep where nothing comes after the search."""
    return 0.0
