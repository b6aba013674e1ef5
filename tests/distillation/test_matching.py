from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.distillation import losses, matching
from kdsearch.distillation.losses import QKV
from kdsearch.distillation.matching import MATCHINGS, Pair, matched, plan, required_layers, transport

MASK = torch.ones(3, 4, dtype=torch.bool)
LOSS = partial(losses.hidden_mse, mask=MASK)


def states(seed: int, layers: int) -> dict[int, torch.Tensor]:
    return dict(enumerate(torch.randn(layers, 3, 4, 6, generator=torch.Generator().manual_seed(seed))))


def teachers(name: str, student_layers: int, teacher_layers: int) -> list[int]:
    return [pair.teacher for pair in plan(name, student_layers, teacher_layers)]


@pytest.mark.parametrize(
    ("name", "student_layers", "teacher_layers", "expected"),
    [
        ("uniform", 6, 12, [1, 3, 5, 7, 9, 11]),
        ("uniform", 4, 12, [2, 5, 8, 11]),
        ("uniform", 5, 12, [1, 4, 6, 9, 11]),  # floor division: 1, 3, 5, 7, 9
        ("uniform", 1, 12, [11]),
        ("uniform_but_last", 6, 12, [1, 3, 5, 7, 9]),
        ("uniform_but_last", 1, 12, [11]),
        ("first", 3, 12, [0, 1, 2]),
        ("last", 3, 12, [9, 10, 11]),  # published slip: in reverse
        ("last_only", 3, 12, [11]),
        ("last2", 6, 12, [9]),
        ("last2", 2, 12, [9]),
        ("last2", 2, 2, [0]),
        ("all_to_one", 3, 12, [11, 11, 11]),
        ("reverse", 3, 12, [11, 7, 3]),
    ],
)
def test_teacher_layers(name: str, student_layers: int, teacher_layers: int, expected: list[int]):
    assert teachers(name, student_layers, teacher_layers) == expected


@pytest.mark.parametrize(("student_layers", "student"), [(6, 3), (3, 0), (2, 0), (1, 0)])
def test_last2_is_the_third_layer_from_the_end(student_layers: int, student: int):
    assert plan("last2", student_layers, 12) == [Pair(student, 9, 1.0)]


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MATCHINGS)),
    layers=st.lists(st.integers(1, 14), min_size=2, max_size=2).map(sorted),
    epoch=st.integers(0, 9),
)
def test_every_plan_is_a_weighting_of_layers_that_exist(name: str, layers: list[int], epoch: int):
    pairs = plan(name, *layers, seed=1, epoch=epoch)
    assert sum(pair.weight for pair in pairs) == pytest.approx(1)
    assert all(0 <= pair.student < layers[0] and 0 <= pair.teacher < layers[1] and pair.weight > 0 for pair in pairs)
    assert pairs == sorted(set(pairs))
    assert {pair.teacher for pair in pairs} <= required_layers(name, *layers)


@given(student_layers=st.integers(1, 40), teacher_layers=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_uniform_always_reaches_the_last_layer_and_never_goes_back(student_layers: int, teacher_layers: int):
    found = teachers("uniform", student_layers, teacher_layers)
    assert found[-1] == teacher_layers - 1
    assert found == sorted(found)
    assert len(set(found)) == min(student_layers, teacher_layers)


@given(student_layers=st.integers(1, 12))
def test_block_mean_uses_every_teacher_layer_once(student_layers: int):
    pairs = plan("block_mean", student_layers, 12)
    assert [pair.teacher for pair in pairs] == list(range(12))
    for i in range(student_layers):
        assert sum(pair.weight for pair in pairs if pair.student == i) == pytest.approx(1 / student_layers)


def test_random_is_redrawn_every_epoch_from_the_seed_and_kept_in_order():
    drawn = [tuple(pair.teacher for pair in plan("random", 4, 12, seed=3, epoch=epoch)) for epoch in range(20)]
    assert drawn == [tuple(pair.teacher for pair in plan("random", 4, 12, seed=3, epoch=epoch)) for epoch in range(20)]
    assert len(set(drawn)) > 10
    assert all(list(layers) == sorted(set(layers)) for layers in drawn)
    assert plan("random", 4, 12, seed=4) != plan("random", 4, 12, seed=3)


def test_required_layers_are_those_to_cache():
    assert required_layers("uniform", 3, 12) == {3, 7, 11}
    assert required_layers("last2", 3, 12) == {9}
    assert required_layers([(0, 2), (1, 5, 3.0)], 2, 12) == {2, 5}
    for name in ("random", "block_mean", "emd", "attention"):
        assert required_layers(name, 3, 12) == set(range(12))


def test_an_explicit_list_has_its_weights_brought_to_a_sum_of_1():
    assert plan([(1, 5, 3.0), (0, 2)], 2, 12) == [Pair(0, 2, 0.25), Pair(1, 5, 0.75)]


@pytest.mark.parametrize("entries", [[(0, 12)], [(2, 0)], [(0, 0, 0.0)], [(-3, 0)], []])
def test_an_explicit_list_of_layers_that_do_not_exist_is_refused(entries: list[tuple[float, ...]]):
    with pytest.raises(ValueError, match="student layers 0 to 1, teacher layers 0 to 11, weights greater than 0; got"):
        plan(entries, 2, 12)


@pytest.mark.parametrize("name", ["first", "last", "random", "block_mean"])
def test_a_student_deeper_than_its_teacher_is_refused(name: str):
    with pytest.raises(ValueError, match=f"'{name}' needs a student no deeper than its teacher; got 5 and 4 layers; use uniform"):
        plan(name, 5, 4)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of uniform, .*got 'skip'"):
        plan("skip", 3, 12)


@pytest.mark.parametrize("name", MATCHINGS)
def test_matched_gives_one_value_per_example_and_no_gradient_to_the_teacher(name: str):
    student, teacher = states(0, 3), states(1, 6)
    for state in (*student.values(), *teacher.values()):
        state.requires_grad_()
    pairs = plan(name, 3, 6)
    values = matched(name, pairs, LOSS, student, {j: teacher[j] for j in required_layers(name, 3, 6)})
    values.sum().backward()
    assert values.shape == (3,)
    assert all(state.grad is None for state in teacher.values())
    for i in {pair.student for pair in pairs}:
        gradient = student[i].grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", MATCHINGS)
def test_the_loss_does_not_grow_with_the_number_of_matches(name: str):
    """Where every layer of one side is alike, every matching gives the loss of one pair."""
    student, teacher = [states(0, 1)[0]] * 4, [states(1, 1)[0]] * 8
    torch.testing.assert_close(matched(name, plan(name, 4, 8), LOSS, student, teacher), LOSS(student[0], teacher[0]))


def test_block_mean_compares_with_the_mean_of_the_group():
    student, teacher = states(0, 2), states(1, 6)
    expected = (LOSS(student[0], sum(teacher[j] for j in range(3)) / 3) + LOSS(student[1], sum(teacher[j] for j in range(3, 6)) / 3)) / 2
    torch.testing.assert_close(matched("block_mean", plan("block_mean", 2, 6), LOSS, student, teacher), expected)


def test_attention_weights_follow_the_similarity():
    student, teacher = torch.eye(3)[None] * 50, torch.eye(3)[None, [2, 0, 1, 1]]
    weights = matching.attention(student.requires_grad_(), teacher.requires_grad_())
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=2), torch.ones(1, 3))
    torch.testing.assert_close(weights[0], torch.tensor([[0, 1, 0, 0], [0, 0, 0.5, 0.5], [1, 0, 0, 0]]))


@pytest.mark.usefixtures("as_installed")
def test_attention_refuses_vectors_of_unlike_sizes():
    with pytest.raises(ValueError, match="vectors of one size; got 3 and 4; project"):
        matching.attention(torch.randn(2, 1, 3), torch.randn(2, 5, 4))


@pytest.mark.parametrize("name", ["block_mean", "attention"])
def test_what_cannot_be_mixed_is_refused(name: str):
    state = QKV(*torch.randn(3, 3, 2, 4, 6))
    with pytest.raises(ValueError, match=r"mixes hidden states of layers, \(batch, seq, dim\); got QKV; use a matching of pairs"):
        matched(name, plan(name, 1, 2), partial(losses.minilm, mask=MASK), [state], [state, state])


@pytest.mark.parametrize("name", ["block_mean", "attention"])
@pytest.mark.parametrize("axes", [2, 4])
def test_only_hidden_states_are_mixed(name: str, axes: int):
    state = torch.randn(*(3,) * axes)
    with pytest.raises(ValueError, match=f"got a tensor of {axes} axes; use a matching of pairs"):
        matched(name, plan(name, 1, 2), lambda s, t: (s - t).flatten(1).sum(1), [state], [state, state])


def test_a_loss_of_all_layers_at_once_takes_pairs_of_equal_weight_only():
    for matching_ in ("uniform", "last2", "random", [(0, 1), (1, 2)]):
        matching.require_plain(matching_, plan(matching_, 2, 4))
    for matching_ in ("emd", "attention", "block_mean", [(0, 1), (1, 2, 2.0)]):
        with pytest.raises(ValueError, match=r"stacks the matched layers, which needs pairs of equal weight; got .*; use uniform"):
            matching.require_plain(matching_, plan(matching_, 2, 4))


@pytest.mark.parametrize("entries", [[(0.5, 1)], [(0,)], [(0, 1, 1.0, 2.0)]])
@pytest.mark.usefixtures("as_installed")
def test_a_list_that_is_no_list_of_pairs_is_refused(entries: list[tuple[float, ...]]):
    with pytest.raises(ValueError, match="layers as whole numbers; got"):
        plan(entries, 2, 12)


@pytest.mark.parametrize("name", ["emd", "attention", "block_mean", "uniform"])
def test_autocast_does_not_round_what_is_matched(name: str):
    student, teacher = states(0, 3), states(1, 6)
    exact = matched(name, plan(name, 3, 6), LOSS, student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matched(name, plan(name, 3, 6), LOSS, student, teacher), exact)


@settings(max_examples=20, deadline=None)
@given(shape=st.tuples(st.integers(1, 6), st.integers(1, 12)), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-9, 1.0, 1e6]))
def test_transport_keeps_the_marginals_and_is_no_dearer_than_any_other_flow(shape: tuple[int, int], seed: int, scale: float):
    rng = np.random.default_rng(seed)
    costs, rows, columns = scale * rng.random(shape), rng.dirichlet(np.ones(shape[0])), rng.dirichlet(np.ones(shape[1]))
    flow = transport(costs, rows, columns)
    assert (flow >= 0).all()
    np.testing.assert_allclose(flow.sum(axis=1), rows, atol=1e-7)
    np.testing.assert_allclose(flow.sum(axis=0), columns, atol=1e-7)
    assert (flow * costs).sum() <= (np.outer(rows, columns) * costs).sum() * (1 + 1e-6)


def test_transport_of_equal_layers_is_the_identity():
    np.testing.assert_allclose(transport(1 - np.eye(4)), np.eye(4) / 4, atol=1e-9)


@pytest.mark.parametrize(
    ("costs", "mass", "message"),
    [(np.full((2, 2), np.nan), None, "costs must be finite"), (np.ones((2, 2)), np.ones(2), "masses must be >= 0")],
)
def test_transport_refuses(costs: np.ndarray, mass: np.ndarray | None, message: str):
    with pytest.raises(ValueError, match=message):
        transport(costs, student_mass=mass)


def test_emd_pairs_a_student_with_the_teacher_layers_that_it_equals():
    teacher = states(1, 4)
    student = [teacher[2], teacher[0], teacher[3], teacher[1]]
    assert matched("emd", plan("emd", 4, 4), LOSS, student, teacher).abs().max() < 1e-6
