import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdsearch import earlier, records, space_file
from kdsearch.candidate import Candidate, Initialization, from_dict
from kdsearch.check import Study
from kdsearch.errors import UserError
from kdsearch.records import COMPLETE, FAILED, REFUSED, STOPPED, Measurement, Record
from kdsearch.report.study_folder import StudyFolder
from kdsearch.search_space import sample, suggest
from kdsearch.space_file import Choice, OneOf, SearchSpace
from kdsearch.study_file import StudySpec

WIDE = space_file.parse(
    {
        "architecture": {"layers": {"int": [1, 6]}, "heads": {"choice": [2, 4]}, "head_size": 16, "ffn_ratio": 2},
        "initialization": {"layers": {"choice": ["uniform", "last"]}},
        "distillation": {"one_of": {"none": {}, "kd": {"kd": {"temperature": {"float": [1, 10]}}}}},
    }
)
SHALLOW = space_file.parse({**WIDE.content, "architecture": {**WIDE.content["architecture"], "layers": {"int": [1, 3]}}})


def study(space: SearchSpace = WIDE, limits: dict[str, Any] | None = None, **search: Any) -> Study:
    spec = {
        "name": "new",
        "teacher": {"model": "t"},
        "task": {"data": "d"},
        "space": "s",
        "limits": {"latency_relative": None, **(limits or {})},
        "search": search,
    }
    return Study(Path("/base"), StudySpec.model_validate(spec), space, Path("/base/new"))


def facts(limits: dict[str, Any] | None = None, name: str = "old") -> dict[str, Any]:
    return {
        "name": name,
        "base": "/base",
        "spec": json.loads(study(limits=limits).spec.model_dump_json()),
        "teacher": {"key": "weights", "accuracy": 0.8},
        "task": {"key": "rows", "majority": 0.5},
        "machine": "a machine",
    }


def candidate(layers: int = 2, branch: str = "none") -> Candidate:
    picked = {"architecture.layers": layers, "distillation": branch}

    def pick(name: str, domain: Any) -> Any:
        lowest = (
            domain.values[0] if isinstance(domain, Choice) else next(iter(domain.branches)) if isinstance(domain, OneOf) else domain.low
        )
        return picked.get(name, lowest)

    return sample(WIDE, pick)


def found(state: str = COMPLETE, latency: float = 0.3, accuracy: float | None = 0.7, **more: Any) -> Measurement:
    known = {"accuracy_se": 0.01, "divergence": 0.1, "latency_ms": 10 * latency, "parameters": 1000, "bytes": 4000}
    return Measurement(state, accuracy=accuracy, latency_relative=latency, **{**known, **more})


def old(*rows: Record, **changes: Any) -> StudyFolder:
    return StudyFolder(Path("/base/old"), {**facts(), **changes}, list(rows), [])


def row(trial: int, measurement: Measurement, layers: int = 2, branch: str = "none", **more: Any) -> Record:
    return Record(trial, candidate(layers, branch).to_dict(), measurement, 7, **more)


def taken(folder: StudyFolder, new: Study, hand_made: tuple[Candidate, ...] = (), **changes: Any) -> earlier.Taken:
    return earlier.take([folder], new, {**facts(), **changes}, hand_made)


class Given:
    """A trial that has these parameters."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params

    def suggest_int(self, name: str, *_: Any, **__: Any) -> Any:
        return self.params[name]

    suggest_float = suggest_categorical = suggest_int


def test_what_the_same_study_found_is_imported_with_where_it_comes_from_and_the_parameters_that_give_it() -> None:
    rows = [row(3, found(seconds=5.0)), row(4, found(STOPPED, steps=75, reason="stopped at step 75"), 3, "kd")]
    given = taken(old(*rows), study(rungs=[0.25]))
    assert [record.imported_from for record in given.imported] == ["trial 3 of old", "trial 4 of old"]
    assert [(record.measurement, record.seed) for record in given.imported] == [(one.measurement, one.seed) for one in rows]
    assert [suggest(WIDE, Given(params)) for params in given.starts] == [from_dict(one.candidate) for one in rows]
    assert list(given.by_key) == [from_dict(one.candidate).key() for one in rows]
    assert given.said == ["from old: 2 trials imported"]


def test_a_student_that_was_proposed_twice_is_imported_once() -> None:
    given = taken(old(row(3, found()), row(4, found(), duplicate_of=3)), study())
    assert [record.imported_from for record in given.imported] == ["trial 3 of old"]
    assert given.said == ["from old: 1 trial imported"]


def test_an_import_of_an_import_names_where_it_was_evaluated() -> None:
    (record,) = taken(old(row(3, found(), imported_from="trial 9 of first")), study()).imported
    assert record.imported_from == "trial 9 of first"


@pytest.mark.parametrize(
    ("measurement", "reason"),
    [
        (Measurement(FAILED, reason="MemoryError"), "failed there"),
        (found(STOPPED, steps=150), "stopped at a rung that this study does not have"),
        (found(REFUSED, 0.5, None, violations=(0.25,)), "refused there for a limit that this study does not have"),
    ],
)
def test_what_this_study_would_not_have_found_is_left_to_be_evaluated(measurement: Measurement, reason: str) -> None:
    new = study(limits={"latency_relative": 0.6}, rungs=[0.25])
    given = taken(old(row(0, measurement), row(1, found(), 3), spec=facts({"latency_relative": 0.4})["spec"]), new)
    assert [record.imported_from for record in given.imported] == ["trial 1 of old"]
    assert len(given.starts) == 1
    assert given.said == [f"from old: 1 trial imported, 1 left out (1 {reason})"]


@pytest.mark.parametrize(
    ("before", "limits", "state", "violations", "reason"),
    [
        (found(violations=(-0.5,)), {"latency_relative": 0.2}, COMPLETE, (0.5,), "latency_relative 0.3 exceeds the limit 0.2"),
        (found(violations=(0.5,), reason="latency_relative"), {"latency_relative": 0.4}, COMPLETE, (-0.25,), None),
        (found(violations=(0.5,), reason="latency_relative"), {}, COMPLETE, (), None),
        (found(), {"accuracy_relative": 0.9}, COMPLETE, (0.72 / 0.7 - 1,), "accuracy_relative 0.875 is below the limit 0.9"),
        # stopped at the rung with the accuracy of a beginner: what it would have is not known
        (found(STOPPED, steps=75, reason="stopped"), {"accuracy_relative": 0.9}, STOPPED, (0.0,), "stopped"),
        (
            found(REFUSED, 0.5, None, reason="other"),
            {"latency_relative": 0.4},
            REFUSED,
            (0.25,),
            "latency_relative 0.5 exceeds the limit 0.4",
        ),
    ],
)
def test_an_import_is_held_against_the_limits_of_this_study(
    before: Measurement, limits: dict[str, float], state: str, violations: tuple[float, ...], reason: str | None
) -> None:
    (record,) = taken(old(row(0, before)), study(limits=limits, rungs=[0.25])).imported
    assert (record.measurement.state, record.measurement.reason) == (state, reason)
    assert record.measurement.violations == pytest.approx(violations)
    assert record.measurement.accuracy == before.accuracy


def test_a_recipe_that_is_impossible_or_unusable_stays_refused_whatever_the_limits_are() -> None:
    content = {**WIDE.content, "architecture": {**WIDE.content["architecture"], "vocabulary": {"choice": [None, 500]}}}
    impossible = row(0, Measurement(REFUSED, reason="heads", violations=(0.0, 0.0)))
    shape = {**row(1, found()).candidate["architecture"], "vocabulary": 500}
    unusable = row(1, found(REFUSED, reason="tokens", accuracy=None, violations=(-0.5, 1.0)))
    unusable = replace(unusable, candidate={**unusable.candidate, "architecture": shape})
    folder = old(impossible, unusable, spec=facts({"latency_ms": 5.0})["spec"])
    first, second = taken(folder, study(space_file.parse(content), {"parameters": 5000})).imported
    assert (first.measurement.reason, first.measurement.violations) == ("heads", (0.0, 0.0))
    assert (second.measurement.reason, second.measurement.violations) == ("tokens", (1000 / 5000 - 1, 1.0))


def test_what_lies_outside_the_space_is_counted_by_the_reason() -> None:
    rows = [row(n, found(), layers, branch) for n, (layers, branch) in enumerate([(2, "none"), (5, "none"), (6, "kd")])]
    only_kd = {**SHALLOW.content, "distillation": {"kd": {"temperature": 1.0}}}
    assert taken(old(*rows), study(SHALLOW)).said == ["from old: 1 trial imported, 2 left out (2 outside this space: architecture)"]
    said = taken(old(*rows), study(space_file.parse(only_kd))).said
    outside = "1 outside this space: distillation; 1 outside this space: architecture, distillation; 1 outside this space: architecture"
    assert said == [f"from old: 0 trials imported, 3 left out ({outside})"]


def test_a_baseline_is_imported_when_it_is_the_same_student_and_was_trained_to_the_end() -> None:
    rows = [row(0, found(violations=(2.0,)), 6, baseline="no-kd"), row(1, found(STOPPED, steps=75), 5), row(2, found(), 4)]
    given = taken(old(*rows), study(SHALLOW, rungs=[0.25]), (candidate(6), candidate(5)))
    assert [(record.imported_from, record.baseline) for record in given.imported] == [("trial 0 of old", None)]
    assert given.starts == []  # the search asks for its baselines itself
    assert given.said == ["from old: 1 trial imported, 2 left out (1 tried or imported already; 1 outside this space: architecture)"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"teacher": {"key": "others", "accuracy": 0.8}}, "teacher"),
        ({"task": {"key": "others", "majority": 0.5}}, "data"),
        ({"spec": {**facts()["spec"], "target": {"threads": 2}}}, "target"),
        ({"spec": {**facts()["spec"], "proxy": {"steps": 5}}}, "proxy"),
        ({"machine": "another"}, "machine"),
        ({"teacher": {"key": "others"}, "machine": "another"}, "teacher and machine"),
    ],
)
def test_of_another_study_the_front_is_tried_first_and_nothing_is_imported(changed: dict[str, Any], named: str) -> None:
    worse = row(1, found(accuracy=0.6, latency=0.4), 3)
    given = taken(old(row(0, found()), worse, row(2, found(accuracy=0.8, latency=0.5), 5, "kd"), **changed), study())
    assert given.imported == []
    assert [suggest(WIDE, Given(params)) for params in given.starts] == [candidate(2), candidate(5, "kd")]
    assert given.said == [f"from old: 2 students of its front tried first; {named} not the same"]


def test_the_seed_the_space_and_the_search_may_differ() -> None:
    spec = {**facts()["spec"], "search": {"seed": 3, "sampler": "random"}, "space": "other.yaml", "limits": {}}
    assert earlier.differences(facts(), {**facts(), "spec": spec}) == []


def test_the_front_by_full_trainings_comes_before_the_one_by_short_ones() -> None:
    folder = old(row(0, found()), teacher={"key": "others"})
    table = {"students": [{"candidate": candidate(n).to_dict(), "on_front": n != 4} for n in (3, 4, 2)]}
    assert earlier.front_of(replace(folder, confirmed=table)) == [candidate(3), candidate(2)]


def test_of_several_studies_imports_come_first_and_each_student_once() -> None:
    other = old(row(0, found()), row(1, found(accuracy=0.8, latency=0.6), 4), name="other", machine="another")
    first, second = old(row(5, found(accuracy=0.71))), old(row(6, found()), row(7, found(), 3), name="second")
    given = earlier.take([other, first, second], study(), facts(), ())
    assert [record.imported_from for record in given.imported] == ["trial 5 of old", "trial 7 of second"]
    assert [params["architecture.layers"] for params in given.starts] == [2, 3, 4]
    assert given.said[2] == "from second: 1 trial imported, 1 left out (1 tried or imported already)"


def test_a_student_made_from_files_that_another_folder_names_is_not_the_same() -> None:
    space = space_file.parse({**WIDE.content, "initialization": {"layers": "pretrained", "model": "nearby"}})
    one = replace(candidate(), initialization=Initialization("pretrained", model="nearby"))
    folder = old(Record(0, one.to_dict(), found(), 0))
    assert len(taken(folder, study(space)).imported) == 1
    moved = taken(folder, study(space), base="/elsewhere")
    assert moved.said == ["from old: 0 trials imported, 1 left out (1 made from files of another folder)"]


def test_what_was_taken_comes_back_from_its_file() -> None:
    given = taken(old(row(3, found(rungs={"75": {"accuracy": 0.6}})), row(4, found(), 3, "kd")), study())
    assert earlier.from_text(given.to_text()) == given


def test_what_is_no_study_is_named_all_at_once(tmp_path: Path) -> None:
    for name, content in (("torn", "{"), ("later", json.dumps(facts())), ("bare", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.json").write_text(content)
    unknown = replace(row(0, found()), candidate={"architecture": {"layers": 1, "invented_later": 2}})
    records.write(tmp_path / "later" / "trials.jsonl", [unknown])
    with pytest.raises(UserError) as refused:
        earlier.load([tmp_path / "nowhere", *(tmp_path / name for name in ("torn", "later", "bare"))])
    assert len(refused.value.messages) == 4
    for message, words in zip(refused.value.messages, ("does not exist", "study.json", "invented_later", "run it again"), strict=True):
        assert message.startswith("--from: ")
        assert words in message


def test_a_study_named_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps(facts()))
    assert len(earlier.load([tmp_path, tmp_path / ".." / tmp_path.name])) == 1


def test_what_was_never_weighed_is_no_result_where_memory_is_limited() -> None:
    new = study(limits={"memory_megabytes": 30})
    given = taken(old(row(0, found()), row(1, found(memory_bytes=20_000_000), 3)), new)
    assert [record.imported_from for record in given.imported] == ["trial 1 of old"]
    assert given.said == ["from old: 1 trial imported, 1 left out (1 its memory was not measured there)"]


def test_a_vocabulary_that_was_ranked_with_another_corpus_is_another_one() -> None:
    content = {**WIDE.content, "architecture": {**WIDE.content["architecture"], "vocabulary": {"choice": [None, 500]}}}
    shape = {**row(0, found()).candidate["architecture"], "vocabulary": 500}
    smaller = replace(row(0, found()), candidate={**row(0, found()).candidate, "architecture": shape})
    spec = facts()["spec"]
    spec = {**spec, "task": {**spec["task"], "corpus": "texts.txt"}}
    said = taken(old(smaller, row(1, found(), 3), spec=spec), study(space_file.parse(content))).said
    assert said == ["from old: 1 trial imported, 1 left out (1 made from files of another folder)"]
