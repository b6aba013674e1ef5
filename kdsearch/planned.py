"""What a study's budget is about to be spent on, by arithmetic: candidates, who goes on at the rungs, finalists, FLOPs."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from kdsearch import rungs
from kdsearch.budget import STEP, seconds_kept
from kdsearch.study_file import StudySpec


@dataclass(frozen=True)
class Costs:
    """What a plan is reckoned from: the machine's FLOP/s in training, FLOPs of one token's forward pass of each candidate that was drawn
    and of each baseline, and FLOPs of the teacher's answers on all rows."""

    rate: float
    candidates: Sequence[float]
    baselines: Sequence[float]
    teacher: float


@dataclass(frozen=True)
class Plan:
    """About what a study runs: seconds a candidate, candidates and which budget ends them, how many go on behind each rung (by its step),
    full trainings of the finalists and their seconds, FLOPs of the search, the teacher's share of these, and FLOPs of the finalists."""

    seconds: float
    candidates: int
    limit: str
    behind: dict[int, int]
    trainings: int
    finalists: float
    search_flops: float
    teacher_flops: float
    finalist_flops: float


def plan(spec: StudySpec, costs: Costs) -> Plan:
    """The plan of a study, if all of the candidates are trained: limits and duplicates make them cheaper, and so more."""
    ends, token = spec.search, mean(costs.candidates) if costs.candidates else 0.0
    candidate = share_of_steps(spec) * spec.proxy.steps * spec.proxy.batch_tokens * STEP * token
    students = [*[token] * (ends.finalists + 1), *costs.baselines] if ends.finalists else []
    full = ends.finalist_seeds * spec.train.steps * spec.train.batch_tokens * STEP * sum(students)
    seconds, kept = candidate / costs.rate, seconds_kept(full / costs.rate, ends)
    allowed = {"minutes": int((ends.minutes * 60 - kept) / max(seconds, 0.1))}
    if ends.flops is not None:
        allowed["flops"] = int(max(0.0, ends.flops - costs.teacher) / max(candidate, 1.0))
    if ends.trials is not None:
        allowed["trials"] = ends.trials
    limit = min(reversed(allowed), key=lambda name: allowed[name])
    many = allowed[limit]
    behind = {step: round(many * ends.eta ** -(number + 1)) for number, step in enumerate(rungs.at(ends.rungs, spec.proxy.steps))}
    trainings = len(students) * ends.finalist_seeds
    return Plan(seconds, many, limit, behind, trainings, full / costs.rate, costs.teacher + many * candidate, costs.teacher, full)


def share_of_steps(spec: StudySpec) -> float:
    """The mean share of the proxy's steps of a candidate, if as many are stopped at each rung as eta says."""
    ends = [*rungs.at(spec.search.rungs, spec.proxy.steps), spec.proxy.steps]
    done = sum((end - start) * spec.search.eta**-number for number, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)))
    return done / spec.proxy.steps
