import re
from dataclasses import replace

import pytest

from kdsearch.candidate import Recipe, Term
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes
from kdsearch.distillation.mistakes import recipe_mistakes, token_mistakes
from tests import tiny

CLASSES = 3  # dkd and dist need so many
NARROW = tiny.narrower()  # as many heads as the teacher, half as wide
KD, COS = Term("kd"), Term("cos")


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (tiny.recipe("attention_mse"), r"attention_mse: .*same number of heads; got 2 and 4.*attention_mean or minilmv2"),
        (tiny.recipe("minilm"), r"minilm: .*same number of heads"),
        (tiny.recipe("dkd"), r"dkd: .*classes.* at least 3; got 2; use kd"),
        (tiny.recipe("dist"), r"dist: .*at least 3; got 2"),
        (tiny.recipe("minilmv2", relation_heads=5), r"minilmv2: relation_heads must divide .*; got 5 for 12; the nearest is 4"),
        (tiny.recipe("minilmv2", relation_heads=0), r"minilmv2: relation_heads must divide"),
        (tiny.recipe("kd", temprature=2.0), r"kd: unknown knob 'temprature'; did you mean 'temperature'\?"),
        (tiny.recipe("kd", temperature=0), r"kd: temperature must be greater than 0; got 0"),
        (tiny.recipe("kd", temperature="hot"), r"kd\.temperature: must be a finite number, 0 or more; the value is 'hot'"),
        (tiny.recipe("kd", temperature=float("inf")), r"kd\.temperature: must be a finite number, 0 or more; the value is inf"),
        (tiny.recipe("rkd", distance=-1.0), r"rkd\.distance: must be a finite number, 0 or more; the value is -1\.0"),
        (tiny.recipe("hidden_mse", matching=None), r"hidden_mse: matching must be one of uniform, .*; got 'None'"),
        (
            tiny.recipe("attention_mean", matching="attention"),
            r"attention_mean: this matching .*; got a tensor of 4 axes",
        ),
        (tiny.recipe("rkd", matching="block_mean"), r"rkd: this matching mixes hidden states .*; got a tensor of 2 axes"),
        (tiny.recipe("ckd", matching="emd"), r"ckd: this loss stacks the matched layers"),
        (Recipe("tried", 1.0, (Term(["cos"]),)), r"unknown knowledge type '\['cos'\]'"),  # pyright: ignore[reportArgumentType]
        (tiny.recipe("kdd"), r"unknown knowledge type 'kdd'; did you mean 'kd'\?"),
        (tiny.recipe("hidden_mse", matching="uniformly"), r"hidden_mse: matching must be one of uniform, .*; got 'uniformly'"),
        (tiny.recipe("hidden_mse", matching=[[0, 9]]), r"hidden_mse: a list of matches needs .*teacher layers 0 to 3"),
        (tiny.recipe("hidden_mse", matching=[[0]]), r"hidden_mse: "),
        (tiny.recipe("hidden_mse", matching=7), r"hidden_mse: "),
        (tiny.recipe("minilmv2", matching="block_mean"), r"minilmv2: this matching mixes hidden states"),
        (tiny.recipe("kd", weight=-1.0), r"kd\.weight: must be a number, 0 or more; the value is -1\.0"),
        (tiny.recipe("kd", weight="1"), r"kd\.weight: must be a number, 0 or more; the value is '1'"),
        (tiny.recipe("kd", hard_weight=True), r"hard_weight: must be a number, 0 or more; the value is True"),
        (tiny.recipe("kd", weight=float("nan")), r"kd\.weight: must be a number, 0 or more; the value is nan"),
        (tiny.recipe("kd", weight=float("inf")), r"kd\.weight: must be a number, 0 or more; the value is inf"),
        (tiny.recipe("kd", weight=0.0), r"hard_weight and every term's weight are 0: nothing would be learned"),
        (Recipe("tried", 0.0), r"hard_weight and every term's weight are 0"),
        (Recipe("tried", 1.0, (replace(COS, schedule="up"),)), r"cos\.schedule: must be one of constant, grow, decay; the value is 'up'"),
        (Recipe("tried", 1.0, (KD,), hard_schedule=None), r"hard_schedule: must be one of constant, grow, decay; the value is None"),  # pyright: ignore[reportArgumentType]
        (Recipe("tried", 1.0, (KD,), balance="even"), r"balance: must be one of fixed, logits, equal; the value is 'even'"),
        (Recipe("tried", 1.0, (KD,), scale="unit"), r"scale: must be one of guess, raw; the value is 'unit'"),
        (Recipe("tried", 1.0, (KD, COS), switch=1.0), r"switch: must be the share .* between 0 and 1; the value is 1\.0; leave it out"),
        (Recipe("tried", 1.0, (KD, COS), switch=0), r"switch: must be the share .*; the value is 0; leave it out"),
        (Recipe("tried", 1.0, (KD,), switch=0.5), r"switch: the first stage needs a term that looks at layers"),
        (Recipe("tried", 0.0, (COS,), switch=0.5), r"switch: the second stage needs the labels or a term on logits"),
        (Recipe("tried", 1.0, (COS,), balance="logits"), r"balance: 'logits' needs a term on logits"),
        (Recipe("tried", 1.0, (replace(KD, label="hard"),)), r"'hard' is the name of the labels' own loss; give the term another label"),
        (tiny.recipe("kd", temperature_end=0.0), r"kd: temperature must be greater than 0; got 0\.0"),
        (tiny.recipe("jsd", temperature_end=2.0), r"jsd: unknown knob 'temperature_end'"),
        (
            tiny.recipe("hidden_mse", matching=[[0, -5]]),
            r"hidden_mse: a list of matches needs .*; got \[\(0, -5, 1\.0\)\]; count blocks from 0",
        ),
    ],
    ids=lambda given: f"{given.terms[0].knowledge} {given.terms[0].knobs}" if isinstance(given, Recipe) and given.terms else None,
)
@pytest.mark.usefixtures("as_installed")
def test_a_recipe_that_cannot_be_used_is_refused_with_its_reason(recipe: Recipe, expected: str) -> None:
    fewer_heads = replace(NARROW, heads=2)
    (message,) = recipe_mistakes(recipe, Shapes(fewer_heads, tiny.SHAPE, classes=2))
    assert re.match(rf"distillation\.tried: {expected}", message), message


def test_all_mistakes_of_a_recipe_come_at_once() -> None:
    recipe = Recipe("tried", -1.0, (Term("kd", 1.0, (("temprature", 2.0),)), Term("coss"), Term("gram", "x")))  # pyright: ignore[reportArgumentType]
    assert len(recipe_mistakes(recipe, Shapes(NARROW, tiny.SHAPE, 2))) == 4


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_what_compares_token_by_token_is_refused_on_another_tokenisation(knowledge: str) -> None:
    found = token_mistakes(tiny.recipe(knowledge), 4000, 9000)
    if KNOWLEDGE[knowledge].view in ("logits", "pooled"):
        assert found == []
        return
    (message,) = found
    assert re.match(rf"distillation\.tried: {knowledge}: compares token by token, .*vocabulary 4000 .* use kd, .*at least 9000", message)


@pytest.mark.parametrize("knowledge", KNOWLEDGE)
def test_each_knowledge_with_its_defaults_is_accepted_where_sizes_allow(knowledge: str) -> None:
    assert recipe_mistakes(tiny.recipe(knowledge, **dict(KNOWLEDGE[knowledge].knobs)), Shapes(NARROW, tiny.SHAPE, CLASSES)) == []
