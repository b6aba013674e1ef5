import json

import numpy as np
import pytest

from kdsearch import guideline
from kdsearch.records import COMPLETE, FAILED, REFUSED, Measurement, Record

FACTS = {
    "name": "planted",
    "spec": {"task": {"data": "reviews.csv"}, "search": {"sampler": "random"}, "proxy": {"steps": 300}},
    "space": {"architecture": {"layers": {"int": [1, 6]}, "heads": 4}, "distillation": {"one_of": {"none": {}, "kd": {}}}},
    "teacher": {"model": "a-teacher"},
    "task": {"train": 1000},
}


def record(trial, accuracy, *, layers=3, heads=4, head_size=16, recipe="none", knobs=None, start="uniform", rate=3e-4, **more):
    terms = {} if recipe == "none" else {"kd": {"weight": 1.0, **(knobs or {"temperature": 2.0})}}
    candidate = {
        "architecture": {"layers": layers, "heads": heads, "head_size": head_size, "ffn_ratio": 4},
        "initialization": {"layers": start, "width": "slice"},
        "distillation": {"name": recipe, "hard_weight": 1.0, **terms},
        "training": {"learning_rate": rate},
    }
    return Record(trial, candidate, Measurement(COMPLETE, accuracy=accuracy, accuracy_se=0.01, latency_relative=0.2), 0, **more)


def planted(n, seed, noise=0.01):
    """Students with +2 points per layer, +3 points for kd, and nothing from heads, start or learning rate."""
    rng, found = np.random.default_rng(seed), []
    for trial in range(n):
        layers, recipe = int(rng.integers(1, 7)), str(rng.choice(["none", "kd"]))
        accuracy = 0.6 + 0.02 * layers + 0.03 * (recipe == "kd") + noise * rng.normal()
        found.append(
            record(
                trial,
                accuracy,
                layers=layers,
                heads=int(rng.choice([2, 4, 8])),
                head_size=int(rng.choice([16, 32])),
                recipe=recipe,
                start=str(rng.choice(["random", "uniform"])),
                rate=10 ** rng.uniform(-4, -3),
            )
        )
    return found


def test_shapes_that_a_space_names_are_told_by_name():
    named = {**FACTS, "space": {"architecture": {"one_of": {"2x384 h12 f4": {}, "4x384 h12 f1": {}}}}}
    assert guideline.region([], named)["student sizes"] == "2x384 h12 f4, 4x384 h12 f1"
    assert guideline.region([], FACTS)["student sizes"] == "layers 1 to 6; heads 4"


def on(found, axis):
    return next(one for one in found if one.axis == axis)


def test_the_vocabulary_is_an_axis_where_it_varies():
    assert "vocabulary" not in {one.axis for one in guideline.statements(planted(40, 0))}
    found = planted(40, 0)
    for one in found[::2]:
        one.candidate["architecture"]["vocabulary"] = 4000
    said = on(guideline.statements(found), "vocabulary")
    assert "vocabulary '4000' instead of" in said.statement or "vocabulary \"the teacher's\" instead of '4000'" in said.statement


def test_planted_effects_are_found_at_40_trials_and_nothing_else_is():
    found = guideline.statements(planted(40, 0))
    layers, recipe = on(found, "layers"), on(found, "distillation")
    assert layers.low < 2 < layers.high
    assert recipe.low < 3 < recipe.high
    assert {one.axis for one in found if one.grade == guideline.SUGGESTIVE} == {"layers", "distillation"}
    assert "'kd' instead of 'none'" in recipe.statement
    assert "not confirmed" in recipe.statement
    assert layers.unit == "percentage points of validation accuracy"
    assert layers.n == 40


@pytest.mark.parametrize("axis", ["width", "heads", "learning_rate", "initialization.layers"])
def test_an_axis_without_effect_says_so_plainly(axis):
    one = on(guideline.statements(planted(40, 0)), axis)
    assert one.grade == guideline.NO_EVIDENCE
    assert one.statement.startswith("No evidence that ")
    assert "40 trials" in one.statement
    assert one.low < 0 < one.high


def test_intervals_cover_the_truth_about_as_often_as_they_promise():
    studies = [guideline.statements(planted(40, seed)) for seed in range(200)]
    for axis, truth in [("layers", 2.0), ("distillation", 3.0), ("width", 0.0)]:
        inside = np.mean([on(found, axis).low <= truth <= on(found, axis).high for found in studies])
        # The share of 200 intervals has a standard error of 0.015; HC3 errs on the wide side in small samples.
        assert 0.95 - 3 * 0.0154 <= inside <= 0.995, axis
    false = np.mean(
        [any(on(found, axis).grade == guideline.SUGGESTIVE for axis in ("width", "heads", "learning_rate")) for found in studies]
    )
    assert false <= 0.05 + 3 * 0.0154


def test_three_records_show_nothing():
    found = guideline.statements(planted(3, 0))
    assert {one.grade for one in found} == {guideline.NO_EVIDENCE}
    assert all(one.statement.startswith("No evidence on ") and one.p_value is None for one in found)
    assert "3 trials" in on(found, "layers").statement


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_record_shows_nothing(n):
    found = guideline.statements(planted(n, 0))
    assert {one.grade for one in found} == {guideline.NO_EVIDENCE}
    assert json.loads(guideline.to_json(found, FACTS))["statements"]
    assert "Nothing." in guideline.to_markdown(found, FACTS)


def test_a_constant_axis_names_its_value():
    ffn = on(guideline.statements(planted(40, 0)), "ffn_ratio")
    assert ffn.statement == "No evidence on ffn_ratio: it was 4 in all 40 trials."
    width = on(guideline.statements(planted(40, 0)), "initialization.width")
    assert width.statement == "No evidence on initialization.width: it was slice in all 40 trials."


def test_collinear_axes_cannot_be_told_apart():
    rng = np.random.default_rng(4)
    heads = rng.choice([2, 4, 8], size=40)
    found = guideline.statements([record(i, 0.6 + 0.02 * np.log2(h) + 0.002 * rng.normal(), heads=int(h)) for i, h in enumerate(heads)])
    assert on(found, "heads").grade == guideline.NO_EVIDENCE
    assert "cannot be told apart from doubling the width" in on(found, "heads").statement
    assert on(found, "width").effect == pytest.approx(2, abs=0.2)
    assert "may belong to either" in on(found, "width").statement


def test_a_choice_that_few_trials_had_is_not_judged():
    some = [*planted(40, 0), *(record(40 + i, 0.9, recipe="tinybert", baseline="tinybert") for i in range(2))]
    found = guideline.statements(some)
    rare = next(one for one in found if "tinybert" in one.statement)
    assert rare.grade == guideline.NO_EVIDENCE
    assert "2 of 42 trials had 'tinybert', 5 are needed" in rare.statement
    assert on(found, "layers").low < 2 < on(found, "layers").high
    assert {one.baselines for one in found} == {2}


def test_a_recipes_own_knob_is_judged_within_its_trials():
    rng, some = np.random.default_rng(5), []
    for trial in range(60):
        temperature, recipe = float(2 ** rng.uniform(0, 3)), str(rng.choice(["none", "kd"]))
        accuracy = 0.7 + (0.03 + 0.02 * np.log2(temperature)) * (recipe == "kd") + 0.005 * rng.normal()
        some.append(record(trial, accuracy, layers=int(rng.integers(1, 7)), recipe=recipe, knobs={"temperature": temperature}))
    knob = on(guideline.statements(some), "distillation.kd.kd.temperature")
    assert knob.low < 2 < knob.high
    assert knob.grade == guideline.SUGGESTIVE


def test_only_trained_students_count_and_each_once():
    some = planted(20, 0)
    twin = Record(20, some[0].candidate, some[0].measurement, 0, duplicate_of=0)
    others = [Record(21 + i, some[0].candidate, Measurement(state), 0) for i, state in enumerate([FAILED, REFUSED])]
    assert guideline.statements([*some, twin, *others]) == guideline.statements(some)


def test_equal_accuracies_show_nothing():
    same = [record(one.trial, 0.831, layers=one.candidate["architecture"]["layers"]) for one in planted(30, 0)]
    assert {one.grade for one in guideline.statements(same)} == {guideline.NO_EVIDENCE}


def test_documents_state_where_they_hold():
    found = guideline.statements(planted(40, 0))
    text = guideline.to_markdown(found, FACTS)
    for part in [
        "a-teacher",
        "reviews.csv (1,000 training rows)",
        "layers 1 to 6",
        "none, kd",
        "40 trained students",
        "random",
        "300 steps",
    ]:
        assert part in text
    assert text.index("## Suggestive") < text.index("One more layer") < text.index("## No evidence")
    assert json.loads(guideline.to_json(found, FACTS))["region"]["sampler"] == "random"


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ({"int": [1, 6]}, "1 to 6"),
        ({"float": [1e-4, 1e-3], "log": True}, "0.0001 to 0.001 (log)"),
        ({"choice": [2, 4]}, "2, 4"),
        ({"one_of": {"none": {}, "kd": {"kd": {}}}}, "none, kd"),
        (4, "4"),
        ({"name": "mine", "kd": {}}, "mine"),
    ],
)
def test_domains_in_words(domain, words):
    assert guideline.in_words(domain) == words
