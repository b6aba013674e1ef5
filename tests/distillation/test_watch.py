import re
from pathlib import Path

import pytest
import torch

from kdsearch.candidate import Candidate, Initialization, Recipe, Term, Training
from kdsearch.distillation import watch
from kdsearch.distillation.composition import HARD, Composition
from kdsearch.distillation.distil import Lesson, distil
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.loop import DivergedError
from kdsearch.distillation.signals import observe
from kdsearch.distillation.watch import PATIENCE, WILD, Watch
from kdsearch.students.build import build
from kdsearch.study_file import Training as Length
from tests import tiny
from tests.distillation.recipe_cases import NAMED

TEACHER = tiny.teacher()
STEPS = 100
HIGHEST = 1e-3  # rate of the shipped spaces


def ask_teacher(signals, batch):
    with torch.no_grad():
        return observe(TEACHER, batch, signals)


def train(folder: Path, recipe: Recipe, rate: float, start: str, length: Length) -> int:
    """Steps that were done."""
    candidate = Candidate(tiny.SHAPE if start == "copy" else tiny.narrower(), Initialization("first" if start == "copy" else start), recipe)
    candidate = Candidate(candidate.architecture, candidate.initialization, recipe, Training(rate))
    shapes = Shapes(candidate.architecture, tiny.SHAPE, 2)
    return len(distil(build(TEACHER, candidate, 0), candidate, shapes, Lesson(tiny.rows(folder), ask_teacher, length, 0, "cpu")))


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("start", ["uniform", "copy"])
def test_no_named_recipe_is_stopped_at_three_times_the_highest_rate_by_half_the_loss(
    name: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WILD", WILD / 2)
    assert train(tmp_path, NAMED[name], 3 * HIGHEST, start, Length(steps=30, batch_tokens=128)) == 30


@pytest.mark.parametrize(("name", "start"), [("kd", "random"), ("kd", "copy"), ("gram", "random"), ("attention_mean", "copy")])
def test_a_rate_of_1_is_stopped_within_three_dozen_steps(name: str, start: str, tmp_path: Path) -> None:
    with pytest.raises(DivergedError) as raised:
        train(tmp_path, tiny.recipe(name), 1.0, start, Length(steps=60, batch_tokens=256))
    said = re.fullmatch(r"the loss was over 5 times .* at step (\d+) of 60; a lower learning_rate is the usual fix", str(raised.value))
    assert said is not None
    assert int(said.group(1)) < 36


def watched(recipe: Recipe) -> Watch:
    return Watch(Composition(recipe, Shapes(tiny.narrower(), tiny.SHAPE, 2)), STEPS)


def see(one: Watch, step: int, **means: float) -> None:
    one.see({name: torch.tensor(value) for name, value in means.items()}, (step + 0.5) / STEPS, step)


def stopped(one: Watch, steps: range, **means: float) -> bool:
    try:
        for step in steps:
            see(one, step, **means)
    except DivergedError:
        return True
    return False


def test_it_takes_ten_wild_steps_in_a_row() -> None:
    one = watched(tiny.recipe("kd"))
    wild = [0.5, *[6.0] * (PATIENCE - 1), 4.0, *[6.0] * PATIENCE]
    for step, value in enumerate(wild[:-1]):
        see(one, step, kd=value)
    with pytest.raises(DivergedError) as raised:
        see(one, len(wild) - 1, kd=wild[-1])
    assert str(raised.value).startswith("the loss was over 5 times what guessing scores for 10 steps (kd: 6, guessing 1) at step 20 of 100")


def test_a_loss_that_begins_high_is_measured_by_its_beginning_and_one_that_begins_at_nothing_by_guessing() -> None:
    high, low = watched(tiny.recipe("kd")), watched(tiny.recipe("kd"))
    for step in range(STEPS):
        see(high, step, kd=50.0 if step == 0 else 240.0)
        see(low, step, kd=0.0 if step == 0 else 4.9)
    assert stopped(high, range(STEPS), kd=260.0)


def test_weights_that_grow_and_stages_that_switch_are_no_divergence() -> None:
    growing = watched(Recipe("grow", 1.0, (Term("kd", 100.0, (), "grow"),)))
    staged = watched(Recipe("staged", 0.0, (Term("kd", 1000.0), Term("cos", 0.01)), switch=0.5))
    for step in range(STEPS):
        see(growing, step, **{HARD: 0.5, "kd": 0.9})  # in all 0.5 at first, 90 in the end
        see(staged, step, **({"cos": 0.9} if step < STEPS / 2 else {"kd": 0.9}))
        assert (growing.wild, staged.wild) == (0, 0)  # not one step counts as wild


def test_a_loss_that_hardly_counts_yet_may_be_wild() -> None:
    one = watched(Recipe("grow", 1.0, (Term("kd", 1.0, (), "grow"),)))
    see(one, 0, **{HARD: 0.1, "kd": 0.1})
    assert not stopped(one, range(1, STEPS // 2), **{HARD: 0.1, "kd": 12.0})
    assert stopped(one, range(STEPS // 2, STEPS), **{HARD: 0.1, "kd": 12.0})


def test_published_scales_are_measured_by_what_guessing_scores_in_them() -> None:
    one = watched(Recipe("raw", 0.0, (Term("kd"),), scale="raw"))
    one.composition.units["kd"] = 1000.0
    for step in range(STEPS):
        see(one, step, kd=4000.0 if step else 0.0)
        assert one.wild == 0
    assert stopped(one, range(STEPS), kd=5001.0)
