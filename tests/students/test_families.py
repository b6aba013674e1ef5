from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AlbertConfig, BertConfig, ErnieConfig, GPT2Config, MistralConfig, PretrainedConfig

from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.errors import UserError
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, family_of, mistakes, narrow, teacher_mistakes
from kdsearch.students.initialize import BY_PLACE
from tests import tiny
from tests.students.tiny_families import CONFIGS

TEACHER = tiny.teacher()
SHAPES = st.builds(
    Architecture,
    layers=st.integers(0, 6),
    heads=st.integers(-1, 6),
    head_size=st.integers(0, 30),
    ffn_ratio=st.sampled_from([0, 0.1, 1, 2.5, 4, 9]),
)


def test_a_model_s_shape_is_read_back_from_the_narrowed_config() -> None:
    shape = Architecture(3, 2, 6, 2, positions=32)
    assert architecture_of(narrow(TEACHER.config, shape)) == shape
    assert architecture_of(TEACHER.config) == replace(tiny.SHAPE, positions=64)


def test_a_narrowed_config_keeps_everything_else_and_leaves_the_teacher_alone() -> None:
    teacher = tiny.config(3, hidden_act="relu", layer_norm_eps=1e-6, id2label={0: "a", 1: "b", 2: "c"})
    before = teacher.to_dict()
    narrowed = narrow(teacher, Architecture(1, 2, 6, 2))
    sizes = {"num_hidden_layers": 1, "hidden_size": 12, "num_attention_heads": 2, "intermediate_size": 24}
    assert narrowed.to_dict() == {**before, **sizes}
    assert teacher.to_dict() == before
    assert isinstance(narrowed, BertConfig)


def test_a_smaller_vocabulary_has_no_token_id_beyond_it() -> None:
    narrowed = narrow(tiny.config(pad_token_id=3, eos_token_id=90), Architecture(1, 2, 6, 2, vocabulary=50))
    assert (narrowed.vocab_size, narrowed.pad_token_id, narrowed.eos_token_id) == (50, 3, None)


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.sampled_from(BY_PLACE))
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


ROTARY, GROUPED = CONFIGS["modernbert"], CONFIGS["llama"]


@pytest.mark.parametrize(
    ("config", "shape", "expected"),
    [
        (TEACHER.config, {"kv_heads": 2}, "architecture.kv_heads: is no choice for bert models; the value is 2; remove the key"),
        (TEACHER.config, {"embedding": 16}, "architecture.embedding: is no choice for bert models; the value is 16; remove the key"),
        (ROTARY, {"positions": 16}, "architecture.positions: is no choice for modernbert models; the value is 16; remove the key"),
        (TEACHER.config, {"positions": 65}, "architecture.positions: must not exceed the teacher's 64; the value is 65"),
        (TEACHER.config, {"positions": 0}, "architecture.positions: must be a whole number above 0; the value is 0"),
        (CONFIGS["roberta"], {"positions": 41}, "architecture.positions: must not exceed the teacher's 40; the value is 41"),
        (GROUPED, {"kv_heads": 4}, "architecture.kv_heads: must not exceed the teacher's 2; the value is 4"),
        (GROUPED, {"heads": 3, "kv_heads": 2}, "architecture.kv_heads: must divide the heads; the values are 2 and 3"),
        (
            GROUPED,
            {"heads": 3},
            "architecture.heads: must be a multiple of 2, as many as share keys and values in the teacher; the value is 3",
        ),
        (ROTARY, {"head_size": 5}, "architecture.head_size: must be even, as rotary positions turn pairs of dimensions; the value is 5"),
        (CONFIGS["electra"], {"embedding": 13}, "architecture.embedding: must not exceed the teacher's 12; the value is 13"),
        (
            CONFIGS["electra"],
            {"heads": 3, "head_size": 4},
            "architecture.embedding: must not be the width, where electra models have no",
        ),
    ],
)
def test_a_mistake_of_a_family_s_own_axis_names_the_value_and_the_rule(config: PretrainedConfig, shape: dict, expected: str) -> None:
    messages = mistakes(Architecture(**{"layers": 2, "heads": 4, "head_size": 8, "ffn_ratio": 1, **shape}), config)
    assert len(messages) == 1
    assert messages[0].startswith(expected), messages


def test_heads_that_are_left_open_share_keys_and_values_as_in_the_teacher() -> None:
    assert narrow(GROUPED, Architecture(2, 2, 8, 1)).num_key_value_heads == 1
    assert narrow(GROUPED, Architecture(2, 4, 8, 1)).num_key_value_heads == 2
    assert narrow(GROUPED, Architecture(2, 4, 8, 1, kv_heads=1)).num_key_value_heads == 1


def test_a_model_type_without_family_is_refused_and_the_message_says_how_to_add_one() -> None:
    with pytest.raises(
        UserError, match=r"unknown model type 'ernie'; .*known: bert, deberta, .*add one, describe it in one file"
    ) as caught:
        family_of(ErnieConfig())
    assert teacher_mistakes(ErnieConfig()) == caught.value.messages


def test_albert_is_refused_with_the_reason() -> None:
    with pytest.raises(
        UserError, match="'albert' cannot be searched: ALBERT's layers share one set of weights, so there is no layer to drop"
    ):
        family_of(AlbertConfig())


def test_a_model_that_no_student_can_be_cut_out_of_is_refused() -> None:
    (message,) = teacher_mistakes(MistralConfig(head_dim=64, hidden_size=256, num_attention_heads=8, pad_token_id=0))
    assert "heads x head size must be the width; its config has 8 x 64 and 256" in message
    (message,) = teacher_mistakes(GPT2Config())
    assert "the config of gpt2 models must name its padding" in message
