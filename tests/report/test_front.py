import json
from dataclasses import replace

import pytest
from synthetic_study import CONFIRMED, candidate, of_its_trials, trained, write_study

from kdsearch import display
from kdsearch.records import COMPLETE
from kdsearch.report import dashboard, front, html


class NoNoise:
    """A generator without randomness, so that a record's accuracy is what its shape says."""

    def normal(self):
        return 0.0

    def random(self):
        return 0.0


def test_document_holds_the_contract(study):
    content = json.loads(json.dumps(front.document(study)))
    assert list(content) == ["study", "teacher", "front", "picks", "confirmed", "baselines", "counts", "hypervolume"]
    assert content["counts"] == {"complete": 20, "stopped": 0, "refused": 8, "failed": 1, "duplicates": 1}
    assert sum(content["counts"].values()) == 30
    assert [one["baseline"] for one in content["baselines"]] == ["no-kd", "distilbert", "tinybert"]
    latencies = [one["latency_relative"] for one in content["front"]]
    accuracies = [one["accuracy"] for one in content["front"]]
    assert latencies == sorted(latencies)
    assert accuracies == sorted(accuracies)
    assert content["picks"]["fastest"] == content["front"][0]["trial"]
    assert content["picks"]["best"] == content["front"][-1]["trial"]
    assert content["hypervolume"]["reference"] == [0.5, 1.0]
    assert 0 < content["hypervolume"]["value"] < 0.5


def test_no_feasible_student_dominates_a_student_of_the_front(study):
    points = [(one.measurement.accuracy, one.measurement.latency_relative) for one in front.feasible(study.records)]
    for one in front.on_front(study):
        mine = (one.measurement.accuracy, one.measurement.latency_relative)
        assert not any(a >= mine[0] and t <= mine[1] and (a, t) != mine for a, t in points)


def test_a_student_over_a_limit_is_never_on_the_front(tmp_path):
    fast = trained(0, candidate(2, 4, "kd"), NoNoise())
    over = trained(1, candidate(6, 12, "kd"), NoNoise(), baseline="whole")
    assert over.measurement.accuracy > fast.measurement.accuracy
    assert not over.feasible
    study = write_study(tmp_path, [fast, over])
    assert [one["trial"] for one in front.document(study)["front"]] == [0]
    assert [(row.role, row.breaks) for row in front.rows(study)] == [("teacher", ""), ("baseline whole", over.breaks), ("front", "")]
    assert over.breaks


def test_what_was_imported_is_marked_and_counted(tmp_path):
    mine, theirs = trained(0, candidate(2, 4, "kd"), NoNoise()), trained(1, candidate(3, 4, "kd"), NoNoise())
    yardstick = trained(2, candidate(1, 2, "none"), NoNoise(), baseline="no-kd", imported_from="trial 0 of old")
    study = write_study(tmp_path, [mine, replace(theirs, imported_from="trial 5 of old"), yardstick])
    assert {row.trial: row.role for row in front.rows(study) if row.trial is not None} == {
        0: "front",
        1: "front, imported",
        2: "front, baseline no-kd, imported",
    }
    assert front.document(study)["counts"]["imported"] == 2
    assert "3 trained, 0 stopped at a rung, 0 refused before training, 0 failed (2 of them imported)" in html.page(study)
    assert "Imported: trial 5 of old found this; it was not evaluated here." in dashboard.note(study.records[1], study.facts)
    assert display.line(study.records[1]).startswith("trial   1  (trial 5 of old)  accuracy ")


def test_a_student_that_only_guesses_is_on_no_front_unless_all_do(tmp_path):
    def student(trial, layers, accuracy):
        one = trained(trial, candidate(layers, 2, "kd"), NoNoise())
        return replace(one, measurement=replace(one.measurement, accuracy=accuracy, accuracy_se=0.0137))

    guessing, hardly, learned = student(0, 1, 0.5), student(1, 2, 0.526), student(2, 3, 0.53)
    assert [one.trial for one in front.on_front(write_study(tmp_path / "some", [guessing, hardly, learned]))] == [2]
    assert [one.trial for one in front.on_front(write_study(tmp_path / "none", [guessing, hardly]))] == [0, 1]
    assert front.picks(write_study(tmp_path / "some", [guessing, hardly, learned]))["fastest"] == 2


def test_each_trial_is_in_one_row_and_picks_are_marked(study):
    rows = front.rows(study)
    numbers = [row.trial for row in rows]
    assert len(numbers) == len(set(numbers))
    assert rows[0].role == "teacher"
    assert (rows[0].layers, rows[0].width, rows[0].faster) == (6, 384, 1.0)
    marked = {pick: row.trial for row in rows for pick in row.picks}
    assert marked == front.document(study)["picks"]
    relative = next(record.measurement.latency_relative for record in study.records if record.trial == rows[-1].trial)
    assert rows[-1].faster == pytest.approx(1 / relative)


def test_a_baseline_on_the_front_stands_there(tmp_path):
    study = write_study(tmp_path, [trained(0, candidate(2, 4, "tinybert"), NoNoise(), baseline="tinybert")])
    assert [row.role for row in front.rows(study)] == ["teacher", "front, baseline tinybert"]


def test_a_study_without_a_trained_student_has_an_empty_front(fresh_study):
    content = front.document(fresh_study)
    assert (content["front"], content["picks"], content["hypervolume"]["value"]) == ([], {}, 0.0)
    assert content["counts"][COMPLETE] == 0
    assert [row.role for row in front.rows(fresh_study)] == ["teacher"]


def confirmed(study, **more):
    """The study with full trainings of a student behind the front and of one on it."""
    return replace(study, confirmed=of_its_trials({**CONFIRMED, **more}, study))


def test_picks_are_by_the_full_trainings_where_there_are_some(study):
    full = confirmed(study)
    assert front.picks(full) == front.document(full)["picks"] == {"knee": 4, "best": 4}
    assert front.short_picks(full) == front.picks(study) != front.picks(full)
    picked = front.picked(full)["knee"]
    assert (picked.trial, picked.accuracy, picked.faster, picked.role) == (4, 0.8401, 5.0, "near the front")
    assert [row["trial"] for row in front.document(full)["confirmed"]] == [4]
    best = front.picks(study)["best"]  # no full training stands on a front, and that of the best one failed
    failed = {**CONFIRMED["students"][1], "trial": best}
    none = confirmed(study, picks={}, students=[failed])
    assert front.picks(none) == front.picks(study)
    assert front.picked(none) == front.picked(study)


def test_students_of_the_front_that_were_not_trained_in_full_are_counted(study):
    numbers = [record.trial for record in front.on_front(study)]
    assert front.unconfirmed(study) == len(numbers)
    done = [{**CONFIRMED["students"][0], "trial": trial, "seeds": seeds} for trial, seeds in ((numbers[0], 2), (numbers[1], 0))]
    assert front.unconfirmed(confirmed(study, students=done)) == len(numbers) - 1
