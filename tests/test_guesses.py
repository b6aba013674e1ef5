import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import guesses, search_space, space_file
from kdsearch.candidate import Architecture
from kdsearch.guesses import SHARES
from kdsearch.search_space import each_architecture
from kdsearch.space_file import Choice, Float, Int, OneOf, SearchSpace, parse
from tests import tiny

TEACHER = Architecture(6, 12, 32, 4)
# iso_parameters is counted out with a teacher at hand: its shapes are named then, which has a test of its own below.
SHIPPED = sorted(path.stem for path in (tiny.REPOSITORY / "search_spaces").glob("*.yaml") if path.stem != "iso_parameters")


def shipped(name: str) -> SearchSpace:
    return space_file.load(tiny.REPOSITORY / "search_spaces" / f"{name}.yaml")


ENCODER = shipped("encoder")


def shapes(params: list[dict]) -> list[Architecture]:
    prefix = "architecture."
    return [
        Architecture(**{name.removeprefix(prefix): value for name, value in one.items() if name.startswith(prefix) and value is not None})
        for one in params
    ]


@settings(max_examples=30)
@given(st.floats(0.01, 1.5))
def test_for_each_share_of_the_limit_the_deepest_and_widest_that_is_expected_to_be_as_fast(limit: float) -> None:
    found = shapes(guesses.guesses(ENCODER, TEACHER, limit))
    latencies = [guesses.expected_latency(shape, TEACHER) for shape in found]
    assert latencies == sorted(latencies)  # the fastest first
    assert len(set(found)) == len(found)
    for share in SHARES:
        fitting = [shape for shape in each_architecture(ENCODER) if guesses.expected_latency(shape, TEACHER) <= share * min(limit, 0.5)]
        if fitting:
            best = max(shape.layers * shape.width**0.5 for shape in fitting)
            assert any(shape in fitting and shape.layers * shape.width**0.5 == pytest.approx(best) for shape in found)
        else:
            assert not any(guesses.expected_latency(shape, TEACHER) <= share * min(limit, 0.5) for shape in found)


def test_where_none_starts_from_principal_components_width_counts_more_than_depth() -> None:
    rotated, sliced = (
        parse({**ENCODER.content, "initialization": {"layers": "uniform", "width": {"choice": ["slice", width]}}})
        for width in ("pca", "importance")
    )
    deep, wide = (shapes(guesses.guesses(space, TEACHER, 1.0)) for space in (rotated, sliced))
    fitting = [shape for shape in each_architecture(ENCODER) if guesses.expected_latency(shape, TEACHER) <= 0.25 * 0.5]
    best = max(shape.width * shape.layers**0.5 for shape in fitting)
    assert any(shape in fitting and shape.width * shape.layers**0.5 == pytest.approx(best) for shape in wide)
    assert max(shape.layers for shape in wide) < max(shape.layers for shape in deep)
    assert min(shape.width for shape in wide) > min(shape.width for shape in deep)


def test_the_fastest_has_a_higher_learning_rate() -> None:
    found = [one["training.learning_rate"] for one in guesses.guesses(ENCODER, TEACHER, 0.5)]
    assert found == pytest.approx([1e-4 * 10**0.75, *[1e-4 * 10**0.5] * 3])


def test_the_teacher_itself_is_expected_at_1_and_half_its_layers_at_a_half() -> None:
    assert guesses.expected_latency(TEACHER, TEACHER) == pytest.approx(1.0)
    assert guesses.expected_latency(Architecture(3, 12, 32, 4), TEACHER) == pytest.approx(0.5)


def test_where_no_architecture_is_small_enough_there_is_none() -> None:
    assert guesses.guesses(ENCODER, TEACHER, 1e-5) == []


def test_what_is_fixed_in_the_space_is_no_parameter() -> None:
    space = parse({"architecture": {"layers": {"int": [1, 4]}, "heads": 12, "head_size": 32, "ffn_ratio": 4}})
    assert guesses.guesses(space, TEACHER, 0.6) == [{"architecture.layers": 1}, {"architecture.layers": 2}]


def test_a_named_shape_is_asked_for_by_its_name() -> None:
    named = {
        "a": {"layers": 6, "heads": 12, "head_size": 32, "ffn_ratio": 4},
        "b": {"layers": 2, "heads": 12, "head_size": 32, "ffn_ratio": 4},
    }
    assert guesses.guesses(parse({"architecture": {"one_of": named}}), TEACHER, 0.5) == [{"architecture": "b"}]


def test_settings_are_the_preferred_ones_the_middle_of_ranges_and_nothing_of_other_branches() -> None:
    space = parse(
        {
            "architecture": {"layers": 2, "heads": 2, "head_size": 16, "ffn_ratio": 1},
            "initialization": {"layers": {"choice": ["random", "last"]}, "width": {"choice": ["slice", "pca"]}},
            "distillation": {
                "one_of": {
                    "none": {},
                    "kd": {
                        "hard_weight": {"float": [0.2, 0.6]},
                        "kd": {"temperature": {"float": [1.0, 16.0], "log": True}},
                        "hidden_mse": {"matching": {"choice": ["uniform", "last_only"]}},
                    },
                }
            },
            "training": {"learning_rate": {"float": [1e-4, 1e-2], "log": True}},
        }
    )
    assert guesses.settings(space) == {
        "initialization.layers": "last",
        "initialization.width": "pca",
        "distillation": "kd",
        "distillation.kd.hard_weight": pytest.approx(0.4),
        "distillation.kd.kd.temperature": pytest.approx(4.0),
        "training.learning_rate": pytest.approx(1e-3),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_guesses_lie_in_every_shipped_space(name: str) -> None:
    space = shipped(name)
    found = guesses.guesses(space, TEACHER, 0.5)
    assert found
    for params in found:
        asked = []

        def pick(key: str, domain: Int | Float | Choice | OneOf, params: dict = params, asked: list = asked) -> object:
            asked.append(key)
            match domain:
                case Int(low, high):
                    assert low <= params.get(key, low) <= high
                    return params.get(key, low)
                case Float(low, high):
                    assert low <= params.get(key, low) <= high
                    return params.get(key, low)
                case Choice(options) | OneOf(options):
                    assert params.get(key, next(iter(options))) in options
                    return params.get(key, next(iter(options)))

        search_space.sample(space, pick)
        assert set(params) <= set(asked) or "distillation" not in params
