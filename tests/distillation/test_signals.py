import pytest
import torch
from torch import Tensor

from kdsearch.distillation.signals import CAPTURE, capturing, observe
from tests import tiny

BATCH = tiny.batch([7, 12, 3])
BLOCKS = range(4)
EVERYTHING = frozenset(
    {"logits", "hidden.embedding"} | {f"{kind}.{block}" for kind in ("hidden", "query", "key", "value") for block in BLOCKS}
)


@pytest.fixture(params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return tiny.teacher(attention=request.param)


def test_hidden_states_are_those_that_enter_and_leave_each_block(model: torch.nn.Module) -> None:
    entered, left = [], []
    for block in BLOCKS:
        module = model.get_submodule(f"bert.encoder.layer.{block}")
        module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        module.register_forward_hook(lambda *parts: left.append(parts[2] if isinstance(parts[2], Tensor) else parts[2][0]))
    found = observe(model, BATCH, EVERYTHING)
    assert torch.equal(found["hidden.embedding"], entered[0])
    for block in BLOCKS:
        assert torch.equal(found[f"hidden.{block}"], left[block]), block
    assert not torch.allclose(found["hidden.embedding"], found["hidden.0"])


def test_queries_keys_and_values_are_those_computed_by_hand(model: torch.nn.Module) -> None:
    found = observe(model, BATCH, EVERYTHING)
    for block in BLOCKS:
        states = found["hidden.embedding" if block == 0 else f"hidden.{block - 1}"]
        for kind in ("query", "key", "value"):
            layer = model.get_submodule(f"bert.encoder.layer.{block}.attention.self.{kind}")
            projected = states @ layer.weight.T + layer.bias
            by_head = torch.stack([projected[:, :, 12 * head : 12 * head + 12] for head in range(4)], dim=1)
            torch.testing.assert_close(found[f"{kind}.{block}"], by_head, rtol=0, atol=1e-5)


def test_only_what_is_asked_for_is_told(model: torch.nn.Module) -> None:
    some = frozenset({"query.2", "hidden.0"})
    found = observe(model, BATCH, some)
    assert set(found) == some
    everything = observe(model, BATCH, EVERYTHING)
    for signal in some:
        torch.testing.assert_close(found[signal], everything[signal], rtol=0, atol=1e-5)


def test_looking_changes_neither_the_answer_nor_the_model(model: torch.nn.Module) -> None:
    before = model.config._attn_implementation
    plain = model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits
    torch.testing.assert_close(observe(model, BATCH, EVERYTHING)["logits"], plain, rtol=0, atol=1e-5)
    assert model.config._attn_implementation == before
    assert not any(hasattr(module, "captured") for module in model.modules())
    assert torch.equal(model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits, plain)


def test_the_model_is_as_before_also_after_an_error(model: torch.nn.Module) -> None:
    before = model.config._attn_implementation
    with capturing(model, {1}):
        assert model.config._attn_implementation == CAPTURE
    with pytest.raises(AttributeError), capturing(model, {1}):
        model.no_such_part()
    assert model.config._attn_implementation == before
    assert not any(hasattr(module, "captured") for module in model.modules())


@pytest.mark.parametrize(("signal", "reached"), [("query.1", "query"), ("key.1", "key"), ("value.1", "value")])
def test_gradients_flow_through_what_is_captured(signal: str, reached: str, model: torch.nn.Module) -> None:
    observe(model, BATCH, frozenset({signal}))[signal].square().sum().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.abs().sum() > 0}
    of_block = {name.removeprefix("bert.encoder.layer.1.") for name in with_gradient if ".layer.1." in name}
    assert of_block == {f"attention.self.{reached}.weight", f"attention.self.{reached}.bias"}
    assert "bert.encoder.layer.0.output.dense.weight" in with_gradient
    assert not any(".layer.2." in name for name in with_gradient)


def test_padding_changes_no_signal_of_a_token(model: torch.nn.Module) -> None:
    wider = tiny.batch([7, 12, 3], width=20)
    one, other = observe(model, BATCH, EVERYTHING), observe(model, wider, EVERYTHING)
    for signal in EVERYTHING:
        for row, length in enumerate([7, 12, 3]):
            values = [found[signal][row] for found in (one, other)]
            if signal != "logits":
                values = [value[..., :length, :] for value in values]
            torch.testing.assert_close(*values, rtol=0, atol=1e-5, msg=signal)
