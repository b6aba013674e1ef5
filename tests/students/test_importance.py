"""What a calibration says of a teacher, in every family: dead parts count nothing and can be cut, identity layers change nothing."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.students.build import build
from kdsearch.students.families import architecture_of, depth_of, family_of, sizes_of, tensors_of
from kdsearch.students.importance import Calibration, calibrate, input_role, is_norm, module_of, top
from kdsearch.students.initialize import BY_MEASURE, BY_PLACE, important_heads, keep_heads, keep_of
from kdsearch.students.removal import dropped
from kdsearch.students.rotation import mistakes as pca_mistakes
from tests.students import tiny_families
from tests.students.tiny_families import CONFIGS, logits, teacher

every_family = pytest.mark.parametrize("name", CONFIGS)


@cache
def calibration(name: str) -> Calibration:
    batch = tiny_families.batch(CONFIGS[name])
    found = calibrate(teacher(name), [batch], moments=True)
    return replace(found, dropped=dropped(teacher(name), [batch]))


def changed(name: str, weights: dict[str, torch.Tensor]) -> PreTrainedModel:
    model = type(teacher(name))(CONFIGS[name]).eval()
    model.load_state_dict({**teacher(name).state_dict(), **weights})
    return model


def silenced(name: str, role: str, dead: np.ndarray) -> PreTrainedModel:
    """The teacher with these heads' dimensions or neurons zeroed in the matrix that reads them, and in all that makes them."""
    weights, sizes = {key: tensor.clone() for key, tensor in teacher(name).state_dict().items()}, sizes_of(CONFIGS[name])
    path = family_of(CONFIGS[name]).layer_path
    for tensor, roles in tensors_of(CONFIGS[name]).items():
        if not tensor.startswith(path):
            continue
        for axis, part in enumerate(roles):
            for n, one in enumerate(str(part).split("+")):
                if one == role and (
                    role == "ffn" or n == 2 or any(word in tensor for word in ("v_proj", "value", "v_lin", "attn.v", "v_bias"))
                ):
                    weights[tensor].index_fill_(axis, torch.from_numpy(dead) + n * sizes[role], 0.0)
                if one == "qkv_by_head" and role == "heads":
                    size = sizes["heads"] // sizes["each_head"]
                    rows = dead // size * 3 * size + 2 * size + dead % size
                    weights[tensor].index_fill_(axis, torch.from_numpy(rows), 0.0)
    return changed(name, weights)


def cut_out(model: PreTrainedModel, name: str, role: str, dead: np.ndarray) -> torch.Tensor:
    """Logits with whatever these dimensions put out multiplied by 0: what is left when they are removed."""
    hooks = []
    for tensor, roles in tensors_of(CONFIGS[name]).items():
        module = module_of(model, tensor)
        if tensor.endswith(".weight") and input_role(module, roles) == role:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs: (inputs[0].index_fill(-1, torch.from_numpy(dead), 0.0),)))
    found = logits(model)
    for hook in hooks:
        hook.remove()
    return found


def test_the_highest_scores_are_kept_in_their_own_order() -> None:
    assert top(np.array([3.0, 1.0, 2.0, 3.0]), 2).tolist() == [0, 3]
    assert top(np.array([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]


@every_family
def test_scores_are_those_of_the_formula(name: str) -> None:
    """sqrt(sum over texts of (mean over tokens of |a|)^2) of the FFN neurons of layer 1, from the inputs of the matrix that reads them."""
    model, batch, seen = teacher(name), tiny_families.batch(CONFIGS[name]), []
    path = f"{family_of(CONFIGS[name]).layer_path}.1."
    (reader,) = (
        module_of(model, tensor)
        for tensor, roles in tensors_of(CONFIGS[name]).items()
        if tensor.startswith(path) and tensor.endswith(".weight") and input_role(module_of(model, tensor), roles) == "ffn"
    )
    hook = reader.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model)
    hook.remove()
    rows = [seen[0][row, : int(length)].abs().mean(0).numpy() for row, length in enumerate(batch.attention_mask.sum(1))]
    np.testing.assert_allclose(calibration(name).ffn[1], np.sqrt(np.square(rows).sum(0)), rtol=1e-4)


@every_family
def test_padding_and_the_cut_into_batches_do_not_count(name: str) -> None:
    model, batch, again = teacher(name), tiny_families.batch(CONFIGS[name]), calibration(name)
    single = [
        replace(batch, input_ids=batch.input_ids[row : row + 1, :length], attention_mask=batch.attention_mask[row : row + 1, :length])
        for row, length in enumerate(batch.attention_mask.sum(1).tolist())
    ]
    found = calibrate(model, single, moments=True)
    for part in ("heads", "dimensions", "ffn", "blocks", "width", "pooled", "embedding"):
        np.testing.assert_allclose(getattr(found, part), getattr(again, part), rtol=1e-3, atol=1e-5, err_msg=part)
    sizes = sizes_of(CONFIGS[name])
    assert (found.heads.shape, found.ffn.shape, found.width.shape) == ((4, 4), (4, sizes["ffn"]), (32,))
    assert all(second.shape == (32, 32) for second in found.second.values())


@every_family
@pytest.mark.parametrize("layers", [*BY_PLACE[1:], *BY_MEASURE])
@pytest.mark.parametrize("width", ["slice", "importance", "pca"])
def test_a_student_of_the_teacher_s_shape_started_from_it_is_the_teacher(name: str, layers: str, width: str) -> None:
    if width == "pca" and pca_mistakes(CONFIGS[name]):
        pytest.skip("its convolution cannot be rotated")
    candidate = Candidate(architecture_of(CONFIGS[name]), Initialization(layers, width))
    student = build(teacher(name), candidate, 0, calibration(name))
    torch.testing.assert_close(logits(student), logits(teacher(name)), rtol=0, atol=0)


@every_family
def test_dead_neurons_have_importance_0_and_nothing_is_lost_with_them(name: str) -> None:
    kept, neurons = 64, sizes_of(CONFIGS[name])["ffn"]
    dead = np.sort(np.random.default_rng(0).permutation(neurons)[: neurons - kept])
    model = silenced(name, "ffn", dead)
    found = calibrate(model, [tiny_families.batch(CONFIGS[name])])
    assert (found.ffn[:, dead] == 0).all()
    assert (np.delete(found.ffn, dead, axis=1) > 0).all()
    student = build(model, Candidate(tiny_families.of_depth(name, 4, ffn_ratio=2), Initialization(width="importance")), 0, found)
    assert sizes_of(student.config)["ffn"] == kept
    torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=1e-5)


@every_family
def test_dead_heads_have_importance_0_and_nothing_is_lost_with_them(name: str) -> None:
    """Of a head whose values are 0; keys are shared in some families, so a whole group is dead there."""
    sizes = sizes_of(CONFIGS[name])
    size, group = sizes["heads"] // sizes["each_head"], sizes["heads"] // sizes["kv_heads"]
    lost = np.arange(group) + (0 if group == sizes["each_head"] else group)
    dead = (lost[:, None] * size + np.arange(size)).ravel()
    shared = family_of(CONFIGS[name]).kv_heads
    model = changed(name, without_values(name, lost, group, size)) if shared else silenced(name, "heads", dead)
    found = calibrate(model, [tiny_families.batch(CONFIGS[name])])
    assert (found.heads[:, lost] == 0).all()
    assert (np.delete(found.heads, lost, axis=1) > 0).all()
    assert torch.equal(cut_out(model, name, "heads", dead), logits(model))
    if group < sizes["each_head"]:
        shape = replace(architecture_of(CONFIGS[name]), heads=4 - group, kv_heads=None)
        student = build(model, Candidate(shape), 0)
        chosen = keep_of(CONFIGS[name], student.config, (0,), found)["each_head"]
        assert chosen.tolist() == [head for head in range(4) if head not in lost]


def without_values(name: str, lost: np.ndarray, group: int, size: int) -> dict[str, torch.Tensor]:
    rows = torch.from_numpy((np.unique(lost // group)[:, None] * size + np.arange(size)).ravel())
    values = {key: tensor.clone() for key, tensor in teacher(name).state_dict().items() if ".v_proj." in key}
    return {key: tensor.index_fill(0, rows, 0.0) for key, tensor in values.items()}


@every_family
def test_an_identity_layer_has_block_importance_0_and_is_dropped_first(name: str) -> None:
    model, batch = changed(name, identity_layer(name, 2)), tiny_families.batch(CONFIGS[name])
    found = calibrate(model, [batch])
    assert abs(found.blocks[2]) < 1e-6
    assert (np.delete(found.blocks, 2) > 1e-4).all()
    order = dropped(model, [batch])
    assert order[0] == 2
    assert sorted(order) == sorted(set(order))
    assert len(order) == 3
    found = replace(found, dropped=order)
    shallow = Candidate(tiny_families.of_depth(name, 3), Initialization("removal"))
    for layers in BY_MEASURE:
        student = build(model, replace(shallow, initialization=Initialization(layers)), 0, found)
        if name.partition(",")[0] not in ("modernbert", "qwen2"):  # a layer that moves down attends as its new place does
            torch.testing.assert_close(logits(student), logits(model), rtol=0, atol=1e-4)


def identity_layer(name: str, layer: int) -> dict[str, torch.Tensor]:
    """What makes a layer hand on its input: its blocks say 0; where norms stand behind blocks, scale 1 and shift 0 from before it on."""
    family, model, weights = family_of(CONFIGS[name]), teacher(name), {}
    for tensor, roles in tensors_of(CONFIGS[name]).items():
        place = tensor.removeprefix(f"{family.layer_path}.").partition(".")[0]
        if place not in (str(layer), str(layer - 1)) or not tensor.startswith(family.layer_path):
            continue
        old = model.state_dict()[tensor]
        norm = is_norm(model, f"{tensor.rpartition('.')[0]}.weight", ("width",)) and roles == ("width",)
        writes = roles == ("width",) or (tensor.endswith(".weight") and input_role(module_of(model, tensor), roles) in ("heads", "ffn"))
        if norm and not family.pre_norm:
            weights[tensor] = torch.full_like(old, float(tensor.endswith(".weight")))
        elif writes and not norm and place == str(layer):
            weights[tensor] = torch.zeros_like(old)
    return weights


@every_family
def test_block_means_are_means_and_of_equal_layers_the_layer(name: str) -> None:
    family, source = family_of(CONFIGS[name]), teacher(name).state_dict()
    first = f"{family.layer_path}.1."
    equal = {
        f"{family.layer_path}.{layer}.{tensor.removeprefix(first)}": weight
        for layer in range(4)
        for tensor, weight in source.items()
        if tensor.startswith(first)
    }
    model = changed(name, {tensor: weight for tensor, weight in equal.items() if tensor in source})
    shape = tiny_families.of_depth(name, 2)
    for teach, check in ((model, lambda _, second: second), (teacher(name), lambda first, second: (first + second) / 2)):
        wide, narrow = teach.state_dict(), build(teach, Candidate(shape, Initialization("block_mean")), 0).state_dict()
        for tensor in (key for key in narrow if key.startswith(f"{family.layer_path}.1.")):
            parts = [wide[tensor.replace(f"{family.layer_path}.1.", f"{family.layer_path}.{layer}.")] for layer in (2, 3)]
            torch.testing.assert_close(narrow[tensor], check(*parts))


def test_grouped_heads_are_chosen_by_the_sum_of_their_group() -> None:
    config = CONFIGS["llama"]  # heads 0, 1 share a key, and heads 2, 3

    def kept(heads: int, kv_heads: int, scores: list[float]) -> list[list[int]]:
        student = build(teacher("llama"), Candidate(Architecture(1, heads, 4, 1, kv_heads=kv_heads)), 0)
        return [part.tolist() for part in important_heads(config, student.config, np.array(scores))]

    assert kept(2, 1, [1.0, 4.0, 3.0, 3.0]) == [[2, 3], [1]]
    assert kept(2, 2, [1.0, 4.0, 3.0, 2.0]) == [[1, 2], [0, 1]]
    assert kept(3, 1, [1.0, 4.0, 3.0, 2.0]) == [[1, 2, 3], [0]]


def test_the_dimensions_of_a_head_are_those_that_say_most() -> None:
    student = build(teacher("bert"), Candidate(Architecture(1, 2, 2, 1)), 0)
    scores = np.arange(32.0).reshape(4, 8)
    scores[2, 1] = 100
    found = keep_heads(CONFIGS["bert"], student.config, np.array([0, 2]), np.array([0, 2]), scores)
    assert found["heads"].tolist() == [6, 7, 16 + 1, 16 + 7]


def test_what_is_measured_cannot_be_chosen_unmeasured() -> None:
    for start in (Initialization("important"), Initialization("removal"), Initialization(width="importance"), Initialization(width="pca")):
        with pytest.raises(ValueError, match="needs a calibration"):
            build(teacher("bert"), Candidate(tiny_families.of_depth("bert", 2), start), 0)
    assert depth_of(CONFIGS["bert"]) == 4
