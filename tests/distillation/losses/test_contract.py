"""One contract, every loss."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from kdsearch.distillation import losses
from tests.distillation.losses import contract_table
from tests.distillation.losses.contract_table import PADDED, TABLE, Batch, Row, Sizes, draw, each, leaves, numbers

NOT_LOSSES = {"QKV", "scores", "first_token", "mean_token", "masked_mean"}
GARBAGE = 1e3

every_loss = pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
padded_losses = pytest.mark.parametrize("row", [TABLE[name] for name in PADDED], ids=PADDED)


def test_every_public_loss_has_a_row():
    assert set(TABLE) == set(losses.__all__) - NOT_LOSSES


@every_loss
def test_one_finite_float32_value_per_example(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=0)
    values = row.loss(student, teacher, batch)
    assert values.shape == (Sizes().batch,)
    assert values.dtype == torch.float32
    assert values.isfinite().all()
    assert (values > -1e-6).all()
    assert values.max() > 1e-3


@pytest.mark.parametrize(
    "row", [row for row in TABLE.values() if row.equal_is_zero], ids=[n for n, row in TABLE.items() if row.equal_is_zero]
)
def test_zero_and_stationary_when_the_student_equals_the_teacher(row: Row):
    student, _, batch = draw(row, Sizes(), seed=1)
    student = each(torch.Tensor.requires_grad_, student)
    values = row.loss(student, each(lambda x: x.detach().clone(), student), batch)
    values.sum().backward()
    assert values.abs().max() < 1e-5
    assert all(x.grad is None or x.grad.abs().max() < 1e-3 for x in leaves(student))


@every_loss
def test_the_gradient_reaches_the_student_and_not_the_teacher(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=2)
    student, teacher = each(torch.Tensor.requires_grad_, student), each(torch.Tensor.requires_grad_, teacher)
    row.loss(student, teacher, batch).sum().backward()
    assert all(x.grad is None for x in leaves(teacher))
    assert all(x.grad.isfinite().all() and x.grad.abs().sum() > 0 for x in leaves(student))


@every_loss
def test_the_order_of_the_batch_does_not_matter(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=3)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    axis = 1 if row.compares == "layers" else 0
    shuffled = [each(lambda x: x.index_select(axis, order), side) for side in (student, teacher)]
    values = row.loss(*shuffled, Batch(batch.mask[order], batch.labels[order]))
    torch.testing.assert_close(values, row.loss(student, teacher, batch)[order], rtol=1e-4, atol=1e-6)


@every_loss
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_are_upcast_before_anything_else(row: Row, low: torch.dtype):
    student, teacher, batch = draw(row, Sizes(), seed=4)
    rounded = [each(lambda x: x.to(low), side) for side in (student, teacher)]
    values = row.loss(*rounded, batch)
    assert torch.equal(values, row.loss(*(each(torch.Tensor.float, side) for side in rounded), batch))
    exact = row.loss(student, teacher, batch)
    torch.testing.assert_close(values, exact, rtol=0.05, atol=0.03 * float(exact.mean()))


@every_loss
def test_autocast_does_not_lower_the_precision(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = row.loss(student, teacher, batch)
    assert torch.equal(values, row.loss(student, teacher, batch))


@padded_losses
def test_what_stands_in_padding_changes_neither_value_nor_gradient(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=6)
    runs = []
    for fill in (0.0, GARBAGE, -GARBAGE):
        of_student = each(lambda x, fill=fill: _filled(row, x, batch.mask, fill).requires_grad_(), student)
        values = row.loss(of_student, each(lambda x, fill=fill: _filled(row, x, batch.mask, fill), teacher), batch)
        values.sum().backward()
        runs.append((values.detach(), [_filled(row, x.grad, batch.mask, 0.0) for x in leaves(of_student)]))
    for values, gradients in runs[1:]:
        torch.testing.assert_close(values, runs[0][0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradients, runs[0][1], rtol=1e-4, atol=1e-6)


@padded_losses
def test_masked_equals_sliced(row: Row):
    student, teacher, batch = draw(row, Sizes(), seed=7)
    mask = torch.zeros_like(batch.mask)
    mask[:, :3] = True
    sliced = [each(lambda x: _sliced(row, x, 3), side) for side in (student, teacher)]
    values = row.loss(student, teacher, Batch(mask, batch.labels))
    torch.testing.assert_close(values, row.loss(*sliced, Batch(mask[:, :3], batch.labels)), rtol=1e-4, atol=1e-6)


@padded_losses
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32])
def test_a_mask_of_any_whole_type_and_a_row_of_padding_alone(row: Row, dtype: torch.dtype):
    student, teacher, batch = draw(row, Sizes(), seed=8)
    batch.mask[2] = False
    student = each(torch.Tensor.requires_grad_, student)
    values = row.loss(student, teacher, Batch(batch.mask.to(dtype), batch.labels))
    values.sum().backward()
    assert values.isfinite().all()
    assert values[2] == 0
    assert all(x.grad.isfinite().all() for x in leaves(student))


@pytest.mark.parametrize(
    "row", [row for row in TABLE.values() if row.reference], ids=[name for name, row in TABLE.items() if row.reference]
)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_equals_the_loss_written_independently(row: Row, data: st.DataObject):
    sizes = Sizes(
        batch=data.draw(st.integers(1, 4)),
        seq=data.draw(st.integers(1, 5)),
        classes=data.draw(st.integers(3, 6)),
        layers=data.draw(st.integers(1, 3)),
        heads=data.draw(st.sampled_from([(1, 1), (2, 3), (4, 2)])),
        head_size=data.draw(st.sampled_from([(6, 6), (6, 12)])),
    )
    student, teacher, batch = draw(row, sizes, seed=data.draw(st.integers(0, 10**6)))
    expected = row.reference(each(numbers, student), each(numbers, teacher), Batch(batch.mask.numpy(), batch.labels.numpy()))
    np.testing.assert_allclose(row.loss(student, teacher, batch).numpy(), expected, rtol=2e-4, atol=2e-5)


def test_signatures_are_enforced_in_this_run():
    with pytest.raises(TypeCheckError):
        losses.hidden_mse(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 4).bool())


def test_the_table_tests_losses_of_unlike_sizes():
    student, teacher, _ = draw(TABLE["minilmv2"], contract_table.Sizes(), seed=0)
    assert student.q.shape != teacher.q.shape


def _filled(row: Row, x: torch.Tensor, mask: torch.Tensor, fill: float) -> torch.Tensor:
    padding = {
        "hidden": ~mask[:, :, None],
        "layers": ~mask[None, :, :, None],
        "qkv": ~mask[:, None, :, None],
        "scores": ~(mask[:, None, :, None] & mask[:, None, None, :]),
    }[row.compares]
    return x.detach().masked_fill(padding, fill)


def _sliced(row: Row, x: torch.Tensor, length: int) -> torch.Tensor:
    if row.compares == "scores":
        return x[:, :, :length, :length]
    return x.narrow({"hidden": 1, "layers": 2, "qkv": 2}[row.compares], 0, length)
