import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from kdsearch import cost
from kdsearch.candidate import Architecture
from kdsearch.students.build import skeleton
from kdsearch.students.families import fixed_of, narrow
from tests import tiny

ARCHITECTURES = st.builds(
    Architecture,
    layers=st.integers(1, 6),
    heads=st.integers(1, 8),
    head_size=st.integers(1, 40),
    ffn_ratio=st.floats(0.05, 6),
    vocabulary=st.one_of(st.none(), st.integers(1, 600)),
)


@settings(deadline=None, max_examples=40)
@given(ARCHITECTURES, st.integers(1, 5), st.integers(1, 600), st.integers(1, 90), st.integers(1, 3))
def test_parameters_are_those_of_the_built_model(shape: Architecture, classes: int, words: int, positions: int, types: int) -> None:
    teacher = tiny.config(classes, vocab_size=words, max_position_embeddings=positions, type_vocab_size=types)
    built = skeleton(teacher, shape)
    assert cost.parameters(shape, fixed_of(teacher)) == sum(weight.numel() for weight in built.parameters())
    assert cost.weight_bytes(10) == 40


@pytest.mark.parametrize(
    ("shape", "batch_size", "length", "classes"),
    [
        (Architecture(1, 2, 4, 1), 1, 8, 2),
        (Architecture(3, 4, 6, 2.5), 5, 17, 2),
        (tiny.SHAPE, 2, 32, 7),
    ],
)
def test_flops_are_those_that_torch_counts(shape: Architecture, batch_size: int, length: int, classes: int) -> None:
    teacher = tiny.config(classes)
    built = type(tiny.teacher())(narrow(teacher, shape)).eval()
    built.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        built(input_ids=torch.ones(batch_size, length, dtype=torch.long))
    assert cost.flops(shape, fixed_of(teacher), batch_size, length) == counted.get_total_flops()
