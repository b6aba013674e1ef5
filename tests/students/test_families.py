import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, DistilBertConfig

from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.errors import UserError
from kdsearch.students.build import build
from kdsearch.students.families import FAMILIES, architecture_of, family_of, mistakes, narrow
from kdsearch.students.initialize import LAYERS
from tests import tiny

TEACHER = tiny.teacher()
SHAPES = st.builds(
    Architecture,
    layers=st.integers(0, 6),
    heads=st.integers(-1, 6),
    head_size=st.integers(0, 30),
    ffn_ratio=st.sampled_from([0, 0.1, 1, 2.5, 4, 9]),
)


def test_a_model_s_shape_is_read_back_from_the_narrowed_config() -> None:
    shape = Architecture(3, 2, 6, 2)
    assert architecture_of(narrow(TEACHER.config, shape)) == shape
    assert architecture_of(TEACHER.config) == tiny.SHAPE


def test_a_narrowed_config_keeps_everything_else_and_leaves_the_teacher_alone() -> None:
    teacher = tiny.config(3, hidden_act="relu", layer_norm_eps=1e-6, id2label={0: "a", 1: "b", 2: "c"})
    before = teacher.to_dict()
    narrowed = narrow(teacher, Architecture(1, 2, 6, 2))
    sizes = {"num_hidden_layers": 1, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 24}
    assert narrowed.to_dict() == {**before, **sizes}
    assert teacher.to_dict() == before
    assert isinstance(narrowed, BertConfig)


def test_a_smaller_vocabulary_has_no_token_id_beyond_it() -> None:
    narrowed = narrow(tiny.config(pad_token_id=3, eos_token_id=90), Architecture(1, 2, 6, 2, 50))
    assert (narrowed.vocab_size, narrowed.pad_token_id, narrowed.eos_token_id) == (50, 3, None)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.sampled_from(LAYERS))
def test_a_shape_without_mistakes_can_be_built_and_another_cannot_be_cut(shape: Architecture, layers: str) -> None:
    found = mistakes(shape, TEACHER.config)
    fits = 1 <= shape.layers <= 4 and 1 <= shape.heads <= 4 and 1 <= shape.head_size <= 12 and shape.ffn_ratio > 0 and shape.ffn <= 192
    assert bool(found) != fits
    if fits:
        student = build(TEACHER, Candidate(shape, Initialization(layers)), seed=0)
        with torch.inference_mode():
            assert student(input_ids=torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (Architecture(5, 4, 12, 4), "architecture.layers: must not exceed the teacher's 4; the value is 5"),
        (Architecture(2, 5, 6, 4), "architecture.heads: must not exceed the teacher's 4; the value is 5"),
        (Architecture(2, 2, 24, 4), "architecture.head_size: must not exceed the teacher's 12; the value is 24"),
        (Architecture(2, 4, 12, 8), "architecture.ffn_ratio: "),
        (Architecture(0, 4, 12, 4), "architecture.layers: must be a whole number above 0; the value is 0"),
        (Architecture(True, 4, 12, 4), "architecture.layers: must be a whole number above 0; the value is True"),
        (Architecture(1.5, 4, 12, 4), "architecture.layers: must be a whole number above 0; the value is 1.5"),  # pyright: ignore[reportArgumentType]
        (Architecture(2, "4", "6", 4), "architecture.head_size: must be a whole number above 0; the value is '6'"),  # pyright: ignore[reportArgumentType]
        (Architecture(2, [1, 4], 6, 4), "architecture.heads: must be a whole number above 0; the value is [1, 4]"),  # pyright: ignore[reportArgumentType]
        (Architecture(2, 4, 12, None), "architecture.ffn_ratio: must be a number above 0; the value is None"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_mistake_names_the_value_and_the_rule(shape: Architecture, expected: str) -> None:
    messages = mistakes(shape, TEACHER.config)
    assert any(message.startswith(expected) for message in messages), messages


def test_another_family_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"unknown model type 'distilbert'; did you mean 'bert'\?"):
        family_of(DistilBertConfig())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_paths_of_a_family_exist(name: str) -> None:
    assert TEACHER.config.model_type == name
    family = FAMILIES[name]
    block = TEACHER.get_submodule(f"{family.layer_path}.0")
    assert {TEACHER.get_submodule(family.encoder), TEACHER.get_submodule(family.embedding_path)}
    for path in (family.attention_path, *family.per_head, *family.from_heads):
        assert block.get_submodule(path)
