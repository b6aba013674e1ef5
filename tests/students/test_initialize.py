import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.distillation.matching import plan
from kdsearch.students.build import build
from kdsearch.students.initialize import LAYERS, teacher_layers
from tests import tiny

TEACHER = tiny.teacher(attention="sdpa")  # a student's own
NARROW = Architecture(layers=2, heads=3, head_size=5, ffn_ratio=2)
EMBEDDINGS_POOLER_HEAD = ("bert.embeddings.", "bert.pooler.", "classifier.")


def built(shape: Architecture, layers: str = "uniform", seed: int = 0) -> PreTrainedModel:
    return build(TEACHER, Candidate(shape, Initialization(layers)), seed)


def logits(model: PreTrainedModel) -> torch.Tensor:
    batch = tiny.batch([7, 12, 5])
    with torch.inference_mode():
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


@pytest.mark.parametrize(
    ("name", "student", "teacher", "expected"),
    [
        ("uniform", 5, 12, [1, 4, 6, 9, 11]),  # floor division would end at 9
        ("uniform", 6, 12, [1, 3, 5, 7, 9, 11]),
        ("uniform", 1, 12, [11]),
        ("uniform", 4, 6, [1, 2, 4, 5]),
        ("first", 3, 12, [0, 1, 2]),
        ("last", 3, 12, [9, 10, 11]),
        ("random", 3, 12, []),
    ],
)
def test_layers_are_chosen_as_the_name_says(name: str, student: int, teacher: int, expected: list[int]) -> None:
    assert teacher_layers(name, student, teacher) == expected


@given(st.integers(1, 48), st.integers(1, 48))
def test_uniform_rises_ends_with_the_last_layer_and_agrees_with_the_matching_of_that_name(student: int, teacher: int) -> None:
    student, teacher = sorted((student, teacher))
    chosen = teacher_layers("uniform", student, teacher)
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == teacher - 1
    assert min(chosen) >= 0
    assert chosen == [pair.teacher for pair in plan("uniform", student, teacher)]


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="one of random, first, last, uniform; the value is 'middle'"):
        teacher_layers("middle", 2, 4)


@pytest.mark.parametrize("layers", ["uniform", "first", "last"])
def test_a_student_of_the_teacher_s_shape_is_the_teacher(layers: str) -> None:
    torch.testing.assert_close(logits(built(tiny.SHAPE, layers)), logits(TEACHER), rtol=0, atol=0)


@pytest.mark.parametrize(("layers", "expected"), [("uniform", [1, 3]), ("first", [0, 1]), ("last", [2, 3])])
def test_layers_are_copied_bit_for_bit_with_everything_around_them(layers: str, expected: list[int]) -> None:
    student, source = built(replace(tiny.SHAPE, layers=2), layers).state_dict(), TEACHER.state_dict()
    for name, tensor in student.items():
        origin = re.sub(r"layer\.(\d)", lambda found: f"layer.{expected[int(found[1])]}", name)
        assert torch.equal(tensor, source[origin]), name


def test_the_student_s_weights_are_its_own() -> None:
    before = {name: tensor.clone() for name, tensor in TEACHER.state_dict().items()}
    student = built(tiny.SHAPE)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in TEACHER.state_dict().items())


def test_a_narrower_student_is_cut_head_by_head() -> None:
    """Against a reference that names each channel: head h and dimension j of the teacher are row 12 h + j."""
    student, source = built(NARROW, "last").state_dict(), {name: tensor.numpy() for name, tensor in TEACHER.state_dict().items()}
    width, neurons = np.arange(15), np.arange(NARROW.ffn)
    heads = np.array([12 * head + j for head in range(3) for j in range(5)])
    assert NARROW.ffn == 32
    for layer, origin in enumerate([2, 3]):
        to, of = f"bert.encoder.layer.{layer}", f"bert.encoder.layer.{origin}"
        expected = {
            f"{to}.attention.self.{x}.weight": source[f"{of}.attention.self.{x}.weight"][np.ix_(heads, width)]
            for x in ("query", "key", "value")
        }
        expected |= {f"{to}.attention.self.{x}.bias": source[f"{of}.attention.self.{x}.bias"][heads] for x in ("query", "key", "value")}
        expected[f"{to}.attention.output.dense.weight"] = source[f"{of}.attention.output.dense.weight"][np.ix_(width, heads)]
        expected[f"{to}.attention.output.dense.bias"] = source[f"{of}.attention.output.dense.bias"][width]
        expected[f"{to}.intermediate.dense.weight"] = source[f"{of}.intermediate.dense.weight"][np.ix_(neurons, width)]
        expected[f"{to}.intermediate.dense.bias"] = source[f"{of}.intermediate.dense.bias"][neurons]
        expected[f"{to}.output.dense.weight"] = source[f"{of}.output.dense.weight"][np.ix_(width, neurons)]
        expected[f"{to}.output.dense.bias"] = source[f"{of}.output.dense.bias"][width]
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            expected |= {f"{to}.{norm}.{x}": source[f"{of}.{norm}.{x}"][width] for x in ("weight", "bias")}
        assert {name for name in student if name.startswith(f"{to}.")} == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(student[name].numpy(), values, err_msg=name)
    words = "bert.embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(student[words].numpy(), source[words][:, width])
    np.testing.assert_array_equal(student["bert.pooler.dense.weight"].numpy(), source["bert.pooler.dense.weight"][np.ix_(width, width)])
    np.testing.assert_array_equal(student["classifier.weight"].numpy(), source["classifier.weight"][:, width])


def test_random_inherits_embeddings_pooler_and_head_and_no_layer() -> None:
    student, copied, source = built(tiny.SHAPE, "random").state_dict(), built(tiny.SHAPE, "uniform").state_dict(), TEACHER.state_dict()
    matrices = 0
    for name, tensor in student.items():
        if name.startswith(EMBEDDINGS_POOLER_HEAD):
            assert torch.equal(tensor, source[name]), name
        elif tensor.ndim == 2:
            matrices += 1
            assert abs(torch.corrcoef(torch.stack([tensor.flatten(), copied[name].flatten()]))[0, 1]) < 0.1, name
    assert matrices == 4 * 6


@pytest.mark.parametrize("layers", LAYERS)
def test_only_random_layers_depend_on_the_seed(layers: str) -> None:
    one, other = (built(NARROW, layers, seed).state_dict() for seed in (0, 1))
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert bool(different) == (layers == "random")
    assert not any(name.startswith(EMBEDDINGS_POOLER_HEAD) for name in different)
