"""Who would be trained in full and for how long; the trainings themselves stand in test_commands."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdsearch import finals
from kdsearch.candidate import Candidate, Training, from_dict
from kdsearch.check import Study
from kdsearch.records import COMPLETE, FAILED, STOPPED, Measurement, Record
from kdsearch.report.study_folder import StudyFolder
from kdsearch.space_file import parse
from kdsearch.study_file import StudySpec
from tests import tiny

FACTS = {"task": {"majority": 0.5, "key": "data"}, "teacher": {"key": "teacher"}}
KD = Candidate(tiny.SHAPE, distillation=tiny.recipe("kd", 0.5))


def study(**search: Any) -> Study:
    content = {"name": "x", "teacher": {"model": "m"}, "task": {"data": "d"}, "space": "s", "search": search}
    spec = StudySpec.model_validate({**content, "proxy": {"steps": 10, "batch_tokens": 100}, "train": {"steps": 100, "batch_tokens": 200}})
    space = parse({"architecture": {"layers": 2, "heads": 2, "head_size": 16, "ffn_ratio": 1}})
    return Study(Path(), spec, space, Path())


def trial(number: int, accuracy: float, latency: float, seconds: float, **more: Any) -> Record:
    """One whose 10 steps take ``seconds``, and the rest of it another second, at 100 FLOPs a second."""
    numbers = {"accuracy": accuracy, "accuracy_se": 0.001, "latency_relative": latency, "steps": 10, "seconds": seconds + 1}
    numbers["flops"] = 100 * (20 * seconds + 1)
    found = Measurement(COMPLETE, stages={"training": seconds, "scoring": 1.0}, **numbers)
    candidate = replace(KD, training=Training(1e-4 * (1 + number)))
    return replace(Record(number, candidate.to_dict(), found, 7), **more)


KNOWN = [trial(0, 0.7, 0.5, 4.0, baseline="no-kd"), trial(1, 0.8, 0.3, 2.0), trial(2, 0.9, 0.6, 8.0), trial(3, 0.6, 0.4, 90.0)]
HAND_MADE = {"no-kd": from_dict(KNOWN[0].candidate)}


def test_each_finalist_is_trained_with_each_seed_and_so_are_twin_and_baselines() -> None:
    todo = finals.jobs(study(), StudyFolder(Path(), FACTS, KNOWN, []), {}, 2, 2)
    assert sorted({job.student.name for job in todo}) == ["0", "1", "2", f"no-kd twin of {todo[0].student.name}"]
    assert len(todo) == 8
    assert len({job.key for job in todo}) == 8
    assert {job.steps for job in todo} == {100}
    assert finals.jobs(study(), StudyFolder(Path(), FACTS, [], []), {}, 2, 2) == []


def test_a_baseline_that_the_search_did_not_come_to_is_trained_in_full_all_the_same() -> None:
    other = replace(KD, training=Training(0.5))
    hand_made = {"no-kd": from_dict(KNOWN[0].candidate), "other": other}
    todo = finals.jobs(study(), StudyFolder(Path(), FACTS, KNOWN, []), hand_made, 2, 1)
    assert [(job.student.name, job.student.candidate) for job in todo if job.student.trial is None][:1] == [("baseline other", other)]
    assert len(todo) == 5
    failed = replace(KNOWN[0], measurement=Measurement(FAILED, reason="too large"))
    without = finals.jobs(study(), StudyFolder(Path(), FACTS, [failed, *KNOWN[1:]], []), hand_made, 2, 1)
    assert [job.student.role for job in without if job.student.yardstick] == ["baseline other"]
    assert finals.jobs(study(), StudyFolder(Path(), FACTS, [], []), hand_made, 2, 1) == []


def test_full_trainings_come_seed_by_seed_and_the_longest_first() -> None:
    other = {"other": replace(KD, training=Training(0.5))}
    todo = finals.jobs(study(), StudyFolder(Path(), FACTS, KNOWN, []), other, 2, 2)
    seconds = dict(zip([job.key for job in todo], finals.expected(study(), todo), strict=True))
    turns = finals.in_turn(study(), todo)
    assert sorted(turns, key=str) == sorted(todo, key=str)
    assert [job.seed for job in turns] == sorted((job.seed for job in todo), key=[job.seed for job in todo].index)
    # both of the front, the knee's twin as the knee, the baseline that was tried, and the mean of these for the one that was not
    assert [seconds[job.key] for job in turns[:5]] == pytest.approx([161.0, 161.0, (161 + 161 + 81 + 41) / 4, 81.0, 41.0])
    assert finals.expected(study(), [replace(job, student=replace(job.student, short=None)) for job in todo[:2]]) == [0.0, 0.0]


def test_what_was_trained_for_other_settings_or_of_another_teacher_is_trained_again() -> None:
    def under(study: Study, facts: dict[str, Any] = FACTS) -> str:
        return finals.jobs(study, StudyFolder(Path(), facts, KNOWN, []), {}, 2, 2)[0].under

    plain, spec = study(), study().spec
    heavier = spec.model_copy(update={"train": spec.train.model_copy(update={"batch_tokens": 300})})
    tighter = spec.model_copy(update={"limits": spec.limits.model_copy(update={"parameters": 5})})
    ways = [plain, replace(plain, spec=heavier), replace(plain, spec=tighter)]
    other = [{**FACTS, "teacher": {"key": "other"}}, {**FACTS, "task": {**FACTS["task"], "key": "other"}}]
    found = {*map(under, ways), *(under(plain, facts) for facts in other)}
    assert len(found) == 5
    assert under(study(minutes=7)) == under(plain)


@pytest.mark.parametrize(
    ("known", "students", "count", "seconds"),
    [
        # A full training is 10 times the steps and twice the tokens: 20 times the trial's, and a second.
        (KNOWN, 2, 1, 2 * (81 + 41 + 161 + 161)),  # the baseline, both of the front, and the knee's twin as the knee
        (KNOWN, 2, 2, 81 + 41 + 161 + 161),
        (KNOWN, 3, 1, 2 * (81 + 41 + 161 + 161 + 121)),  # another of the front as the mean of these
        (KNOWN[1:3], 2, 1, 2 * (41 + 161 + 161 + 500)),  # the baseline by its FLOPs
        ([*KNOWN[1:3], replace(KNOWN[0], measurement=Measurement(FAILED))], 2, 1, 2 * (41 + 161 + 161)),  # which is not tried again
        ([trial(0, 0.8, 0.3, 2.0, measurement=Measurement(STOPPED, steps=5, seconds=5.0))], 2, 1, 2 * 4 * 200),  # no front yet, nor FLOPs
        ([], 2, 1, 0.0),
        (KNOWN, 0, 1, 0.0),
    ],
)
def test_what_is_kept_is_what_the_finalists_of_the_moment_take(known: list[Record], students: int, count: int, seconds: float) -> None:
    keep = finals.keeper(study(finalists=students, finalist_seeds=2, minutes=100), FACTS, HAND_MADE, {"no-kd": 50_000.0}, count)
    assert keep(known) == pytest.approx(seconds)


def test_no_more_than_four_fifths_are_kept() -> None:
    assert finals.keeper(study(finalists=2, minutes=10), FACTS, HAND_MADE, {}, 1)(KNOWN) == pytest.approx(480.0)
