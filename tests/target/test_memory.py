import pytest
import torch
from torch.autograd.profiler import profile

from kdsearch.study_file import Target
from kdsearch.target.memory import Count, peak_bytes
from tests import tiny

FLOAT, LONG = 4, 8


def weights_of(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def test_the_most_that_lives_at_once_is_counted_and_views_and_what_is_known_are_not() -> None:
    known = torch.ones(100)
    with Count([known.untyped_storage()]) as count:
        first = known + 1  # 400 bytes
        second = first[:50] * 2  # 200 more, of a view
        assert count.most == 600
        del first
        third = second.reshape(5, 10).T.contiguous()  # 200, from another view
        second.add_(third.flatten()[:50])  # in its place
        known.mul_(2)
        assert (count.now, count.most) == (200 + 200, 600)


@pytest.mark.parametrize(("batch", "length", "ffn"), [(1, 32, 64), (4, 16, 32)])
def test_a_tiny_model_s_peak_is_that_of_its_feed_forward_block(batch: int, length: int, ffn: int) -> None:
    """There live the block's input, the neurons before and after their activation, and ids and masks; within 5 %."""
    width = 24
    model = tiny.teacher(hidden_size=width, num_attention_heads=2, num_hidden_layers=2, intermediate_size=ffn * width, attention="sdpa")
    tokens = batch * length
    expected = FLOAT * tokens * (width + 2 * ffn * width) + 2 * LONG * tokens
    found = peak_bytes(model, Target(batch_size=batch, sequence_length=length)) - weights_of(model)
    assert found == pytest.approx(expected, rel=0.05)


def test_it_agrees_with_what_torch_s_profiler_saw_the_allocator_do() -> None:
    """Within 5 %: the allocator also sees what operations take for themselves, and rounds up."""
    model, target = tiny.teacher(attention="sdpa"), Target(batch_size=4, sequence_length=48)
    ids = torch.ones((4, 48), dtype=torch.long)
    mask = torch.ones_like(ids)
    with torch.no_grad(), profile(profile_memory=True) as seen:
        model(input_ids=ids, attention_mask=mask)
    assert seen.kineto_results is not None
    events = sorted((event for event in seen.kineto_results.events() if event.name() == "[memory]"), key=lambda event: event.start_ns())
    now, most = 2 * ids.nbytes, 0
    for event in events:
        now += event.nbytes()
        most = max(most, now)
    assert peak_bytes(model, target) - weights_of(model) == pytest.approx(most, rel=0.05)


def test_it_is_the_same_each_time_and_counts_a_tied_weight_once() -> None:
    model, target = tiny.teacher(), Target(sequence_length=16)
    first = peak_bytes(model, target)
    assert peak_bytes(model, target) == first
    model.add_module("again", model.get_submodule("bert.embeddings"))
    assert peak_bytes(model, target) == first


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_wider_student_a_larger_batch_and_longer_texts_take_more(attention: str) -> None:
    def taken(width: int = 24, batch: int = 2, length: int = 16) -> int:
        model = tiny.teacher(attention=attention, hidden_size=width, num_attention_heads=2, intermediate_size=2 * width)
        return peak_bytes(model, Target(batch_size=batch, sequence_length=length))

    for sizes in ([{"width": width} for width in (12, 24, 48)], [{"batch": n} for n in (1, 2, 4)], [{"length": n} for n in (8, 16, 32)]):
        found = [taken(**size) for size in sizes]
        assert found == sorted(set(found))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_allocator_tells_about_the_same() -> None:
    model, target = tiny.teacher(attention="eager", hidden_size=480), Target(batch_size=16, sequence_length=64)
    on_cpu = peak_bytes(model, target)
    assert peak_bytes(model, target.model_copy(update={"device": "cuda"})) == pytest.approx(on_cpu, rel=0.3)
