import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch import space_file
from kdsearch.candidate import Architecture
from kdsearch.search_space import each_architecture
from kdsearch.space_file import parse
from kdsearch.widest import MOST, widest
from tests import tiny

TEACHER = Architecture(6, 12, 32, 4)
ENCODER = space_file.load(tiny.REPOSITORY / "search_spaces" / "encoder.yaml")


def shapes(params: list[dict]) -> list[tuple]:
    return [tuple(one.values()) for one in params]


def test_the_widest_that_three_quarters_of_the_limit_allow_largest_first() -> None:
    # of the teacher's 6 layers with FFN ratio 4: 0.333, 0.333, 0.333, 0.25; the limit asks for 0.375
    assert shapes(widest(ENCODER, TEACHER, 0.5)) == [(2, 12, 32, 4), (3, 12, 32, 2), (4, 12, 32, 1), (3, 12, 32, 1)]
    assert shapes(widest(ENCODER, TEACHER, None))[0] == (4, 12, 32, 4)


def test_what_is_fixed_in_the_space_is_no_parameter() -> None:
    space = parse({"architecture": {"layers": {"int": [1, 2]}, "heads": 12, "head_size": 32, "ffn_ratio": 4}})
    assert widest(space, TEACHER, 0.6) == [{"architecture.layers": 2}, {"architecture.layers": 1}]


def test_where_no_architecture_is_small_enough_there_is_no_start() -> None:
    assert widest(ENCODER, TEACHER, 1e-5) == []


@settings(max_examples=30)
@given(st.floats(0.02, 1.5))
def test_starts_lie_in_the_space_and_are_few(limit: float) -> None:
    found = widest(ENCODER, TEACHER, limit)
    known = {(shape.layers, shape.heads, shape.head_size, shape.ffn_ratio) for shape in each_architecture(ENCODER)}
    assert len(found) <= MOST
    assert set(shapes(found)) <= known
    assert len({heads * size for _, heads, size, _ in shapes(found)}) <= 1


def test_a_named_shape_is_a_start_by_its_name() -> None:
    named = {
        "a": {"layers": 6, "heads": 12, "head_size": 32, "ffn_ratio": 4},
        "b": {"layers": 2, "heads": 12, "head_size": 32, "ffn_ratio": 4},
    }
    assert widest(parse({"architecture": {"one_of": named}}), TEACHER, 0.5) == [{"architecture": "b"}]


@pytest.mark.parametrize("name", ["encoder", "joint", "recipes", "distillation"])
def test_every_shipped_space_has_widest(name: str) -> None:
    assert widest(space_file.load(tiny.REPOSITORY / "search_spaces" / f"{name}.yaml"), TEACHER, 0.5)
