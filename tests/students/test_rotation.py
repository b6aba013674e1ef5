"""A residual stream of rank r is carried by a student of width r: exactly, wherever norms allow it."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.students import rotation
from kdsearch.students.build import build
from kdsearch.students.families import family_of, sizes_of, tensors_of
from kdsearch.students.importance import calibrate, input_role, is_norm, module_of
from tests.students import tiny_families
from tests.students.test_importance import changed, silenced, without_values
from tests.students.tiny_families import CONFIGS, logits, teacher

RANK, HEADS, SIZE = 16, 2, 8
ROTATED = [name for name, config in CONFIGS.items() if not rotation.mistakes(config)]
GROUPED = [name for name in ROTATED if name != "mistral"]  # all of its heads share one key, so none can be dead alone


def of_rank(name: str, scale: float | None = 1.3) -> PreTrainedModel:
    """The teacher with a residual stream of 16 dimensions that are no channels, and two of its four heads dead.

    Norms whose output is the stream have one number as their scale, or random ones where ``scale`` is None.
    """
    config, family, random = CONFIGS[name], family_of(CONFIGS[name]), np.random.default_rng(3)
    basis = np.linalg.qr(np.column_stack([np.ones(32), random.normal(size=(32, RANK - 1))]))[0]
    inside = torch.from_numpy(basis @ basis.T).float()
    dead = np.arange(HEADS * SIZE, 4 * SIZE)
    if family.kv_heads:
        group = sizes_of(config)["heads"] // sizes_of(config)["kv_heads"]
        model, weights = teacher(name), teacher(name).state_dict() | without_values(name, np.arange(HEADS, 4), group, SIZE)
    else:
        model = silenced(name, "heads", dead)
        weights = model.state_dict()
    weights = {tensor: weight.clone() for tensor, weight in weights.items()}
    for tensor, roles in tensors_of(config).items():
        norm = is_norm(model, f"{tensor.rpartition('.')[0]}.weight", ("width",)) and roles == ("width",)
        reads = input_role(module_of(model, tensor), roles) == "width" if len(roles) == 2 else False
        writes_stream = not family.pre_norm or "embeddings.norm" in tensor
        if norm and writes_stream and tensor.endswith(".weight"):
            weights[tensor] = weights[tensor] if scale is None else torch.full((32,), scale)
        elif "width" in roles and not reads and (writes_stream or not norm):
            axis = roles.index("width")
            weights[tensor] = (weights[tensor].movedim(axis, -1) @ inside).movedim(-1, axis)
    return changed(name, weights)


def stream(model: PreTrainedModel) -> torch.Tensor:
    """What leaves the last layer, of tokens that are no padding."""
    some, found = tiny_families.batch(model.config), []
    layers = model.get_submodule(family_of(model.config).layer_path)
    assert isinstance(layers, nn.ModuleList)
    hook = layers[-1].register_forward_hook(lambda _, inputs, output: found.append(output[0] if isinstance(output, tuple) else output))
    logits(model)
    hook.remove()
    return found[0][some.attention_mask.bool()]


def narrowed(name: str, model: PreTrainedModel) -> tuple[PreTrainedModel, torch.Tensor]:
    """The student that has the rank as its width, and the basis."""
    found = calibrate(model, [tiny_families.batch(CONFIGS[name])], moments=True)
    kv_heads = HEADS * sizes_of(CONFIGS[name])["kv_heads"] // 32 if family_of(CONFIGS[name]).kv_heads else None
    shape = Architecture(4, HEADS, SIZE, sizes_of(CONFIGS[name])["ffn"] / RANK, kv_heads)
    student = build(model, Candidate(shape, Initialization(width="pca")), 0, found)
    return student, torch.from_numpy(rotation.components(model, found, RANK)).float()


@pytest.mark.parametrize("name", GROUPED)
def test_a_stream_of_the_student_s_rank_is_reproduced(name: str) -> None:
    model = of_rank(name)
    assert np.linalg.matrix_rank(stream(model).numpy(), tol=1e-3) <= RANK
    student, basis = narrowed(name, model)
    found, expected = stream(student), stream(model)
    torch.testing.assert_close(found, expected @ basis, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found @ basis.T, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in GROUPED if CONFIGS[name].model_type in ("gpt2", "llama", "qwen2")])
def test_where_norms_only_read_the_answer_is_the_teacher_s(name: str) -> None:
    model = of_rank(name, scale=None)
    torch.testing.assert_close(logits(narrowed(name, model)[0]), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_where_norms_write_a_scale_that_varies_is_approximated(name: str) -> None:
    """Scales of 1 +- 0.2 channel by channel: the narrow norms cannot have them, and the error grows from norm to norm."""
    model = of_rank(name, scale=None)
    student, basis = narrowed(name, model)
    expected = stream(model)
    lost = (stream(student) @ basis.T - expected).square().sum() / (expected - expected.mean(0)).square().sum()
    assert 1e-4 < lost < 0.5


@pytest.mark.parametrize("name", ROTATED)
@pytest.mark.parametrize("kept", [7, 32])
def test_the_basis_is_orthonormal_and_layer_norms_keep_their_mean_direction(name: str, kept: int) -> None:
    found = calibrate(teacher(name), [tiny_families.batch(CONFIGS[name])], moments=True)
    basis = rotation.components(teacher(name), found, kept)
    np.testing.assert_allclose(basis.T @ basis, np.eye(kept), atol=1e-10)
    if not family_of(CONFIGS[name]).rms:
        np.testing.assert_allclose(basis.T @ np.ones(32) / np.sqrt(32), np.ones(kept) / np.sqrt(kept), atol=1e-10)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "llama, biases"])
def test_a_full_rotation_changes_no_answer(name: str) -> None:
    model = teacher(name)
    found = calibrate(model, [tiny_families.batch(CONFIGS[name])], moments=True)
    basis = rotation.components(model, found, 32)
    turned = rotation.project(model, dict(model.state_dict()), tensors_of(CONFIGS[name]), found, basis)
    assert not torch.allclose(turned[f"{family_of(CONFIGS[name]).embedding_path}.weight"], model.get_input_embeddings().weight)
    torch.testing.assert_close(logits(changed(name, turned)), logits(model), rtol=0, atol=1e-4)


def test_a_convolution_is_refused() -> None:
    (message,) = rotation.mistakes(CONFIGS["deberta-v2"])
    assert message.startswith("initialization.width: pca cannot be used on this deberta-v2 teacher: its convolution")
    assert rotation.mistakes(CONFIGS["deberta-v3"]) == []
