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
from kdsearch.students.families import family_of, narrow
from kdsearch.students.initialize import BY_PLACE, leading_heads, teacher_layers
from tests import tiny
from tests.students import tiny_families

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
        ("every_kth", 3, 12, [0, 4, 8]),
        ("every_kth", 5, 12, [0, 2, 4, 6, 8]),
        ("every_kth", 7, 12, [0, 1, 2, 3, 4, 5, 6]),
        ((0, 2, 4, 7, 9, 11), 6, 12, [0, 2, 4, 7, 9, 11]),  # DistilBERT's
        ((3, 3, 0), 3, 12, [3, 3, 0]),
        ("random", 3, 12, []),
    ],
)
def test_layers_are_chosen_as_the_name_says(name: str | tuple[int, ...], student: int, teacher: int, expected: list[int]) -> None:
    assert teacher_layers(name, student, teacher) == [(layer,) for layer in expected]


@given(st.integers(1, 48), st.integers(1, 48))
def test_uniform_rises_ends_with_the_last_layer_and_agrees_with_the_matching_of_that_name(student: int, teacher: int) -> None:
    student, teacher = sorted((student, teacher))
    chosen = [layer for (layer,) in teacher_layers("uniform", student, teacher)]
    assert chosen == sorted(set(chosen))
    assert chosen[-1] == teacher - 1
    assert min(chosen) >= 0
    assert chosen == [pair.teacher for pair in plan("uniform", student, teacher)]
    groups = [(pair.student, pair.teacher) for pair in plan("block_mean", student, teacher)]
    assert [(i, layer) for i, group in enumerate(teacher_layers("block_mean", student, teacher)) for layer in group] == groups


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"one of random, first, last, uniform, every_kth, block_mean, .* or a list; the value is 'middle'"
    ):
        teacher_layers("middle", 2, 4)
    with pytest.raises(ValueError, match=r"one teacher layer for each of the student's 2; the value is \[1\]; give as many"):
        teacher_layers((1,), 2, 4)
    with pytest.raises(ValueError, match=r"must hold teacher layers, 0 to 3; the value is \[0, 4\]; correct it"):
        teacher_layers((0, 4), 2, 4)


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


@pytest.mark.parametrize("layers", BY_PLACE)
def test_only_random_layers_depend_on_the_seed(layers: str) -> None:
    one, other = (built(NARROW, layers, seed).state_dict() for seed in (0, 1))
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert bool(different) == (layers == "random")
    assert not any(name.startswith(EMBEDDINGS_POOLER_HEAD) for name in different)


def numpy_parts(name: str, shape: Architecture) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The state dicts of a student of that shape, and of the teacher that its one layer comes from, the last."""
    student = build(tiny_families.teacher(name), Candidate(shape, Initialization("last")), seed=0)
    return tuple({key: value.numpy() for key, value in model.state_dict().items()} for model in (student, tiny_families.teacher(name)))  # pyright: ignore[reportReturnType]


def test_a_grouped_head_keeps_its_keys_and_values_and_the_speed_at_which_its_pairs_turn() -> None:
    """Teacher: heads 0 and 1 share key 0, heads 2 and 3 key 1; eight dimensions, of which j and j + 4 turn together."""
    student, source = numpy_parts("llama", Architecture(1, 2, 4, 1, kv_heads=2))
    of, to, turned = "model.layers.3.self_attn", "model.layers.0.self_attn", [0, 2, 4, 6]
    heads, keys = [8 * head + j for head in (0, 2) for j in turned], [8 * head + j for head in (0, 1) for j in turned]
    np.testing.assert_array_equal(student[f"{to}.q_proj.weight"], source[f"{of}.q_proj.weight"][heads, :8])
    np.testing.assert_array_equal(student[f"{to}.k_proj.weight"], source[f"{of}.k_proj.weight"][keys, :8])
    np.testing.assert_array_equal(student[f"{to}.v_proj.weight"], source[f"{of}.v_proj.weight"][keys, :8])
    np.testing.assert_array_equal(student[f"{to}.o_proj.weight"], source[f"{of}.o_proj.weight"][:8, heads])
    narrow, wide = (
        model.model.rotary_emb.inv_freq
        for model in (build(tiny_families.teacher("llama"), Candidate(Architecture(1, 2, 4, 1)), 0), tiny_families.teacher("llama"))
    )
    torch.testing.assert_close(narrow, wide[[0, 2]])


@pytest.mark.parametrize(
    ("heads", "kv_heads", "kept", "kept_keys"),
    [
        (4, 2, [0, 1, 2, 3], [0, 1]),
        (2, 1, [0, 1], [0]),
        (2, 2, [0, 2], [0, 1]),
        (1, 1, [0], [0]),
        (4, 1, [0, 1, 2, 3], [0]),  # one key for all: the first head's
        (3, 1, [0, 1, 2], [0]),
    ],
)
def test_heads_are_kept_by_group(heads: int, kv_heads: int, kept: list[int], kept_keys: list[int]) -> None:
    teacher = tiny_families.CONFIGS["llama"]
    found = leading_heads(teacher, narrow(teacher, Architecture(2, heads, 4, 1, kv_heads=kv_heads)))
    assert [part.tolist() for part in found] == [kept, kept_keys]


def test_fused_and_transposed_projections_are_cut_part_by_part() -> None:
    heads, ffn = [8 * head + j for head in range(2) for j in range(5)], 16
    shape = Architecture(1, 2, 5, ffn / 10)
    student, source = numpy_parts("gpt2", shape)
    fused = [32 * part + row for part in range(3) for row in heads]
    of, to = "transformer.h.3", "transformer.h.0"
    np.testing.assert_array_equal(student[f"{to}.attn.c_attn.weight"], source[f"{of}.attn.c_attn.weight"][:10, fused])
    np.testing.assert_array_equal(student[f"{to}.attn.c_attn.bias"], source[f"{of}.attn.c_attn.bias"][fused])
    np.testing.assert_array_equal(student[f"{to}.mlp.c_proj.weight"], source[f"{of}.mlp.c_proj.weight"][:ffn, :10])
    student, source = numpy_parts("deberta", shape)
    by_head = [24 * head + 8 * part + j for head in range(2) for part in range(3) for j in range(5)]
    of, to = "deberta.encoder.layer.3.attention.self", "deberta.encoder.layer.0.attention.self"
    np.testing.assert_array_equal(student[f"{to}.in_proj.weight"], source[f"{of}.in_proj.weight"][by_head, :10])
    student, source = numpy_parts("modernbert", replace(shape, head_size=4, ffn_ratio=2))
    gated = [row + part for part in (0, 96) for row in range(16)]
    np.testing.assert_array_equal(student["model.layers.0.mlp.Wi.weight"], source["model.layers.3.mlp.Wi.weight"][gated, :8])


def test_positions_keep_the_rows_of_the_first_positions() -> None:
    student, source = numpy_parts("roberta", Architecture(1, 4, 8, 1, positions=20))
    table = "roberta.embeddings.position_embeddings.weight"
    np.testing.assert_array_equal(student[table], source[table][:22])  # two rows before the first


@pytest.mark.parametrize("name", ["electra, not factorised", "deberta-v3"])
def test_embeddings_that_become_factorised_start_as_the_leading_channels(name: str) -> None:
    shape = tiny_families.of_depth(name, 4)
    student, source = numpy_parts(name, replace(shape, embedding=12))
    family = family_of(tiny_families.CONFIGS[name])
    words = f"{family.embedding_path}.weight"
    np.testing.assert_array_equal(student[words] @ student[family.projection].T, source[words] * (np.arange(32) < 12))


def test_factorised_embeddings_are_cut_on_both_sides_of_their_projection() -> None:
    student, source = numpy_parts("electra", Architecture(1, 2, 8, 1, embedding=6))
    np.testing.assert_array_equal(student["electra.embeddings_project.weight"], source["electra.embeddings_project.weight"][:16, :6])
    np.testing.assert_array_equal(student["electra.embeddings.LayerNorm.bias"], source["electra.embeddings.LayerNorm.bias"][:6])
