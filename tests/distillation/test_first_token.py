"""The last layer at the first token: the same answer and the same gradients in every family, and off where more is read of it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kdsearch.candidate import Candidate
from kdsearch.distillation.first_token import at_first_token, reads_first_token
from kdsearch.distillation.signals import capture_attention, explicit_attention, observe
from kdsearch.students.build import build
from kdsearch.tasks.batches import Batch
from tests.students import tiny_families

NAMES = list(tiny_families.CONFIGS)
READING = [name for name in NAMES if not name.startswith(("modernbert", "gpt2", "llama", "mistral", "qwen2"))]
LOGITS = frozenset({"logits"})


def student(name: str, layers: int = 2) -> PreTrainedModel:
    return build(tiny_families.teacher(name), Candidate(tiny_families.of_depth(name, layers)), seed=0)


def padded_left(batch: Batch) -> Batch:
    flipped = {part: getattr(batch, part).flip(1) for part in ("input_ids", "attention_mask")}
    return replace(batch, **flipped)


def told(model: PreTrainedModel, batch: Batch, whole: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits and every gradient, by the model's own forward pass or by ours."""
    model.zero_grad()
    logits = (
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits if whole else observe(model, batch, LOGITS)["logits"]
    )
    torch.nn.functional.cross_entropy(logits, batch.labels).backward()
    return logits.detach(), {part: weight.grad for part, weight in model.named_parameters() if weight.grad is not None}


def widths(model: PreTrainedModel, batch: Batch, signals: frozenset[str]) -> list[int]:
    """Tokens that each layer puts out."""
    found: list[int] = []
    hooks = []
    family = tiny_families.FAMILIES[model.config.model_type]
    for layer in model.get_submodule(family.layer_path).children():
        note = lambda _, __, out: found.append((out[0] if isinstance(out, tuple) else out).shape[1])  # noqa: E731
        hooks.append(layer.register_forward_hook(note))
    observe(model, batch, signals)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_is_on_for_families_whose_classifier_reads_the_first_token(name: str) -> None:
    model, some = student(name), tiny_families.batch(tiny_families.CONFIGS[name])
    assert reads_first_token(model.config) == (name in READING)
    assert widths(model, some, LOGITS) == [16, 1 if name in READING else 16]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", READING)
def test_answers_and_gradients_are_those_of_the_whole_layer(name: str, layers: int) -> None:
    model, right = student(name, layers), tiny_families.batch(tiny_families.CONFIGS[name])
    for batch in (right, padded_left(right)):
        (logits, gradients), (expected, expected_gradients) = (told(model, batch, whole) for whole in (False, True))
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert gradients.keys() == expected_gradients.keys()
        for part, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[part], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, part=part: f"{part}: {text}")


@pytest.mark.parametrize("name", [name for name in READING if name != "deberta"])
def test_under_bf16_it_differs_by_rounding(name: str) -> None:
    model, some = student(name), tiny_families.batch(tiny_families.CONFIGS[name])
    with torch.inference_mode(), explicit_attention(model), torch.autocast("cpu", torch.bfloat16):
        found = observe(model, some, LOGITS)["logits"].float()
        expected = observe(model, some, LOGITS | {"hidden.1"})["logits"].float()
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("signal", ["hidden.1", "query.1", "value.1"])
def test_it_is_off_where_the_last_block_is_looked_at(signal: str) -> None:
    model, some = student("bert"), tiny_families.batch(tiny_families.CONFIGS["bert"])
    assert widths(model, some, LOGITS | {signal}) == [16, 16]


def test_signals_of_other_blocks_are_told_beside_it() -> None:
    model, some = student("bert"), tiny_families.batch(tiny_families.CONFIGS["bert"])
    lower = LOGITS | {"hidden.embedding", "hidden.0", "query.0"}
    assert widths(model, some, lower) == [16, 1]
    found, expected = observe(model, some, lower), observe(model, some, lower | {"hidden.1"})
    for signal in lower:
        torch.testing.assert_close(found[signal], expected[signal], rtol=1e-5, atol=1e-5)


def test_it_is_off_under_dropout_and_where_a_convolution_follows() -> None:
    model, some = student("bert").train(), tiny_families.batch(tiny_families.CONFIGS["bert"])
    assert widths(model, some, LOGITS) == [16, 16]
    assert not reads_first_token(student("deberta-v2", layers=1).config)


def test_the_layer_is_as_before_also_after_an_error() -> None:
    model, some = student("bert"), tiny_families.batch(tiny_families.CONFIGS["bert"])
    before = set(model.state_dict()), [dict(vars(part)) for part in model.modules()]
    with pytest.raises(AttributeError), at_first_token(model, some.attention_mask, capture_attention):
        model.no_such_part()
    after = set(model.state_dict()), [dict(vars(part)) for part in model.modules()]
    assert before[0] == after[0]
    assert [part.keys() for part in before[1]] == [part.keys() for part in after[1]]
