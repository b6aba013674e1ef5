from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedModel

from kdsearch import calibration, cost, objective, space_file, workbench
from kdsearch.candidate import Candidate, Initialization
from kdsearch.study_file import StudySpec
from kdsearch.tasks.pool import Pool
from tests import tiny

EVERYTHING = frozenset({"scores", "moments", "removal"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Pool:
    return tiny.rows(tmp_path)


def load(model: PreTrainedModel, rows: Pool, parts: frozenset[str] = EVERYTHING, seed: int = 0) -> calibration.Calibration:
    found = calibration.load(model, rows, parts, seed, "cpu", workbench.silent)
    assert found is not None
    return found


def passes(model: PreTrainedModel) -> list[int]:
    seen: list[int] = []
    model.register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


def same(one: calibration.Calibration, other: calibration.Calibration) -> bool:
    for name, value in asdict(one).items():
        again = getattr(other, name)
        pairs = [(value[key], again[key]) for key in value.keys() | again.keys()] if isinstance(value, dict) else [(value, again)]
        if not all(np.array_equal(*pair) for pair in pairs):
            return False
    return True


def test_it_is_made_once_and_read_the_second_time(rows: Pool) -> None:
    model = tiny.teacher()
    made, seen = load(model, rows), passes(model)
    assert same(load(model, rows), made)
    assert not seen
    assert (made.heads.shape, made.dimensions.shape, made.ffn.shape, made.width.shape) == ((4, 4), (4, 4, 12), (4, 192), (48,))
    assert len(made.dropped) == 3
    assert made.second.keys() == made.mean.keys()
    assert len(made.second) == 9  # a norm behind the embeddings, and two in each layer


def test_other_weights_rows_seeds_and_parts_are_calibrated_anew(tmp_path: Path, rows: Pool, cache: Path) -> None:
    load(tiny.teacher(), rows)
    for model, texts, parts, seed in (
        (tiny.teacher(seed=3), rows, EVERYTHING, 0),
        (tiny.teacher(), tiny.rows(tmp_path, train=46), EVERYTHING, 0),
        (tiny.teacher(), rows, frozenset({"scores"}), 0),
        (tiny.teacher(), rows, EVERYTHING, 1),
    ):
        seen = passes(model)
        load(model, texts, parts, seed)
        assert seen
    assert len(list((cache / "calibrations").iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut off", "empty", "gone", "of another model", "a bit"])
def test_a_damaged_one_is_made_again(damage: str, rows: Pool, cache: Path) -> None:
    model = tiny.teacher()
    made = load(model, rows)
    (file,) = (cache / "calibrations").glob("*/*.npz")
    content = file.read_bytes()
    match damage:
        case "gone":
            file.unlink()
        case "of another model":
            np.savez(file, **{**np.load(file), "blocks": np.zeros(7)})
        case "a bit":
            file.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
        case _:
            file.write_bytes(content[: 500 if damage == "cut off" else 0])
    assert same(load(model, rows), made)


def test_one_that_fails_half_way_leaves_nothing(rows: Pool, cache: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibration.load(tiny.teacher(), rows, EVERYTHING, 0, "cpu", stop)
    assert list((cache / "calibrations").iterdir()) == []


def test_rows_are_those_that_students_are_trained_on_and_the_seed_s(rows: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ROWS", 20)
    found = calibration.rows_of(rows, 0)
    assert len(set(found.tolist())) == 20
    assert set(found.tolist()) <= {*rows.train.tolist(), *rows.transfer.tolist()}
    assert found.tolist() != calibration.rows_of(rows, 1).tolist()


def test_only_what_an_initialization_chooses_by_is_needed() -> None:
    for start, expected in (
        (Initialization(), set()),
        (Initialization("block_mean"), set()),
        (Initialization("important"), {"scores"}),
        (Initialization(width="importance"), {"scores"}),
        (Initialization(width="pca"), {"scores", "moments"}),
        (Initialization("removal"), {"scores", "removal"}),
    ):
        assert calibration.parts_of([start, Initialization()]) == expected


def test_its_work_is_told_beforehand() -> None:
    """Counted here from what is done: passes over texts, second moments behind 9 norms, students of 3, 2, 1 layers by 4, 3, 2."""
    config, tokens = tiny.config(), 16

    def work(*parts: str, texts: int = 10_000) -> float:
        return calibration.work(config, frozenset(parts), texts, tokens)

    one = cost.flops(config, 1, tokens)
    assert work() == 0
    assert work("scores") == 1.5 * 1000 * one
    assert work("scores", texts=100) == 1.5 * 100 * one
    assert work("scores", "moments") - work("scores") == 2 * 1000 * tokens * 9 * (2 * 48 * 48)
    assert work("removal") == pytest.approx(250 * one * (1 + (4 * 3 + 3 * 2 + 2 * 1) / 4))


@pytest.mark.parametrize(("start", "made"), [({"width": {"choice": ["slice", "pca"]}, "layers": "removal"}, True), ({}, False)])
def test_a_study_calibrates_where_its_space_can_use_it(start: dict, made: bool, tmp_path: Path, cache: Path) -> None:
    spec = StudySpec.model_validate(tiny.study(tmp_path))
    space = space_file.parse({**tiny.space_content(), "initialization": start})
    bench = workbench.prepare(spec, space, tmp_path, [])
    assert (bench.calibration is not None) == made
    assert (cache / "calibrations").exists() == made
    if made:
        candidate = Candidate(replace(tiny.narrower(), layers=2), Initialization("removal", "pca"))
        assert objective.started(candidate, bench, 0).config.hidden_size == 24
