import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from kdsearch import cost
from kdsearch.candidate import Architecture
from kdsearch.students.build import skeleton
from kdsearch.students.families import narrow
from tests import tiny
from tests.students import tiny_families
from tests.students.tiny_families import CONFIGS

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
    assert cost.parameters(narrow(teacher, shape)) == built.num_parameters()
    assert cost.weight_bytes(10) == 40


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("layers", "batch_size", "length"), [(4, 1, 8), (3, 5, 17)])
def test_flops_are_those_that_torch_counts(name: str, layers: int, batch_size: int, length: int) -> None:
    config = narrow(CONFIGS[name], tiny_families.of_depth(name, layers, ffn_ratio=2.5))
    built = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counted, torch.inference_mode():
        built(input_ids=torch.full((batch_size, length), 7), attention_mask=torch.ones(batch_size, length, dtype=torch.long))
    assert cost.flops(config, batch_size, length) == counted.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
def test_word_embeddings_are_those_of_the_built_model(name: str) -> None:
    model = tiny_families.teacher(name)
    assert cost.embeddings(model.config) == model.get_input_embeddings().weight.numel()
