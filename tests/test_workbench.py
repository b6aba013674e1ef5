from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdsearch import objective, space_file, workbench
from kdsearch.candidate import Candidate, Initialization, Recipe, Term
from kdsearch.errors import UserError
from kdsearch.order import seed_of
from kdsearch.space_file import SearchSpace
from kdsearch.study_file import StudySpec
from tests import teaching, tiny

CONFIG = tiny.config()
KD = Candidate(tiny.narrower(), Initialization("last"), Recipe("kd", 0.5, (Term("kd"), Term("hidden_mse"))))


def space_of(layers: Any, **recipe: Any) -> SearchSpace:
    shape = {"layers": layers, "heads": 4, "head_size": 6, "ffn_ratio": 2}
    return space_file.parse({"architecture": shape, "distillation": {"hard_weight": 1.0, **recipe}})


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (space_of(2), {"logits"}),
        (space_of(2, cos={"matching": "uniform"}), {"logits", "hidden.1", "hidden.3"}),
        (space_of({"int": [1, 2]}, cos={"matching": "first"}), {"logits", "hidden.0", "hidden.1"}),
        (space_of({"choice": [1, 4]}, cos={"matching": "last2"}), {"logits", "hidden.1"}),
        (space_of({"choice": [1, 4]}, minilmv2={"relation_heads": 4}), {"logits", "query.3", "key.3", "value.3"}),
        (space_of(2, cos={"matching": {"choice": ["last_only", "all_to_one", "random"]}}), {"logits", *(f"hidden.{n}" for n in range(4))}),
    ],
)
def test_the_cache_holds_what_a_candidate_of_the_space_can_use_and_no_more(space: SearchSpace, expected: set[str]) -> None:
    assert workbench.signals_of(space, [], CONFIG) == expected


def test_the_cache_holds_what_the_baselines_use() -> None:
    extra = Candidate(tiny.narrower(layers=1), distillation=Recipe("x", 1.0, (Term("hidden_mse"),)))
    assert workbench.signals_of(space_of(2), [extra], CONFIG) == {"logits", "hidden.3"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workbench.Bench:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return teaching.bench(tmp_path)


@pytest.fixture
def spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> workbench.Bench:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return teaching.spelled_bench(tmp_path)


def test_what_short_distillations_read_is_kept_and_the_rest_is_told_when_it_is_read(tmp_path: Path, bench: workbench.Bench) -> None:
    """Few steps read few of the rows: the search's own seed never asks the teacher, another one does, and finds what it would have."""
    short = bench.spec.model_copy(update={"proxy": bench.spec.proxy.model_copy(update={"steps": 2, "batch_tokens": 64})})
    few = workbench.prepare(short, space_file.load(tmp_path / "space.yaml"), tmp_path, [KD])
    long = bench.spec.model_copy(update={"proxy": bench.spec.proxy.model_copy(update={"steps": 8})})
    assert workbench.prepare(long, space_file.load(tmp_path / "space.yaml"), tmp_path, [KD]).told is None  # it reads most of the rows
    assert few.told is not None
    assert len(few.told) < 0.5 * (len(few.rows.train) + len(few.rows.transfer))
    whole, asked = workbench.in_full(few), teaching.forwards(few.teacher)
    assert whole.outputs.holds(np.concatenate([few.rows.train, few.rows.transfer]))
    del asked[:]
    own = seed_of(short.search)
    found = {}  # two steps, and four batches to calibrate on
    for seed in (own, own + 1):
        for name, one in (("few", few), ("whole", whole)):
            student = objective.started(KD, one, seed)
            before = len(asked)
            objective.train(student, KD, one, short.proxy, seed)
            found[seed, name] = objective.scores(student, one)["divergence"], len(asked) - before
    assert found[own, "few"] == found[own, "whole"]
    assert [count for _, count in found.values()] == [0, 0, 6, 0]
    assert found[own + 1, "few"][0] == pytest.approx(found[own + 1, "whole"][0], rel=1e-2)


def test_where_vocabularies_vary_every_row_is_kept(spelled: workbench.Bench) -> None:
    assert spelled.told is None


def test_a_teacher_that_only_guesses_is_refused_when_it_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    spec = StudySpec.model_validate({**tiny.study(tmp_path), "teacher": {"model": "model", "fine_tune": None}})
    with pytest.raises(UserError, match=r"teacher.fine_tune: null takes the model as it is, and its accuracy .* is not above"):
        workbench.prepare(spec, space_file.load(tmp_path / "space.yaml"), tmp_path, [])
