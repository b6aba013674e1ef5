import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdsearch import inference
from kdsearch.distillation.signals import observe
from kdsearch.errors import UserError
from kdsearch.machine import accelerator
from kdsearch.tasks.batches import collate
from kdsearch.tasks.pool import Pool
from tests import tiny
from tests.teaching import AS_IT_IS, Events, forwards, load

SIGNALS = frozenset({"logits", "hidden.embedding", "hidden.2", "query.3", "key.3", "value.0"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KDSEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def rows(tmp_path: Path) -> Pool:
    tiny.save(tmp_path / "model")
    return tiny.rows(tmp_path)


def test_outputs_are_computed_once_and_then_read(tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    seen, events = forwards(model), Events()
    first = inference.outputs(model, key, rows, SIGNALS, "cpu", events)
    assert seen
    assert events[-1][1] == events[-1][2] == len(rows.encoded.ids)
    computed = len(seen)
    again = inference.outputs(model, key, rows, SIGNALS, "cpu", events)
    assert len(seen) == computed
    assert all(np.array_equal(again.arrays[signal], first.arrays[signal]) for signal in SIGNALS)
    assert len(list((cache / "outputs").iterdir())) == 1


def test_of_rows_that_are_only_measured_nothing_but_logits_is_kept(tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    found = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    tokens = rows.encoded.offsets[len(rows.train) + len(rows.transfer)]
    assert {signal: len(found.arrays[signal]) for signal in SIGNALS} == {
        signal: len(rows.encoded) if signal == "logits" else tokens for signal in SIGNALS
    }
    every = inference.predict(model, rows.encoded, np.arange(len(rows.encoded)), rows.pad_id, "cpu")
    np.testing.assert_allclose(found.arrays["logits"], every, atol=1e-5)


def test_of_some_rows_nothing_else_is_computed_and_no_other_is_told(tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    whole = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    some, seen, events = np.array([1, 4, 5, len(rows.train) + 2]), forwards(model), Events()
    found = inference.outputs(model, key, rows, SIGNALS, "cpu", events, rows=some)
    assert seen
    assert events[-1][2] == rows.encoded.lengths[some].sum() + rows.encoded.lengths[rows.measuring].sum()
    assert found.holds(some[[2, 0]])
    assert not found.holds(np.array([1, 2]))
    batch = collate(rows.encoded, some[[2, 0, 3]], rows.pad_id, torch.device("cpu"))
    for signal, values in found.batch(SIGNALS, batch).items():
        torch.testing.assert_close(values.float(), whole.batch(SIGNALS, batch)[signal].float(), rtol=2**-7, atol=1e-5, msg=signal)
    untold = np.setdiff1d(np.arange(len(rows.train) + len(rows.transfer)), some)
    assert np.isnan(found.arrays["logits"][untold]).all()
    assert np.isfinite(found.arrays["logits"][rows.measuring]).all()
    assert len(list((cache / "outputs").iterdir())) == 2


def test_what_is_not_kept_is_told_by_a_forward_pass_as_it_would_be_kept(tmp_path: Path, rows: Pool) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    kept = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    batch = collate(rows.encoded, np.array([3, 0, 7]), rows.pad_id, torch.device("cpu"))
    expected = kept.batch(SIGNALS, batch)
    with torch.autocast("cpu", torch.bfloat16, enabled=accelerator("cpu").mixed_precision == "bf16"):
        found = inference.told_now(model, SIGNALS, batch)
    assert set(found) == set(expected)
    for signal, values in found.items():
        assert (values.dtype, values.shape, values.requires_grad) == (expected[signal].dtype, expected[signal].shape, False)
        torch.testing.assert_close(values.float(), expected[signal].float(), rtol=2**-7, atol=1e-5, msg=signal)


@pytest.mark.parametrize("damage", ["cut off", "empty", "gone", "of another length", "one bit"])
@pytest.mark.parametrize("signal", ["logits", "hidden.2"])
def test_a_damaged_cache_is_made_again_and_never_used(damage: str, signal: str, tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    first = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    expected = {name: np.array(array) for name, array in first.arrays.items()}
    (file,) = (cache / "outputs").glob(f"*/{signal}.npy")
    if damage == "gone":
        file.unlink()
    elif damage == "of another length":
        np.save(file, expected[signal][:5])
    elif damage == "one bit":
        content = bytearray(file.read_bytes())
        content[-3] ^= 4
        file.write_bytes(content)
    else:
        file.write_bytes(file.read_bytes()[: 200 if damage == "cut off" else 0])
    again = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    assert all(np.array_equal(again.arrays[name], expected[name]) for name in SIGNALS)


@pytest.mark.parametrize("what", ["rows", "signals", "teacher"])
def test_outputs_of_other_content_are_computed_anew_beside_the_old(what: str, tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    inference.outputs(model, key, rows, frozenset({"logits"}), "cpu", Events())
    seen = forwards(model)
    other_rows = tiny.rows(tmp_path, train=46) if what == "rows" else rows
    signals = frozenset({"logits", "hidden.0"}) if what == "signals" else frozenset({"logits"})
    found = inference.outputs(model, "another" if what == "teacher" else key, other_rows, signals, "cpu", Events())
    assert seen
    assert len(list((cache / "outputs").iterdir())) == 2
    assert len(found.arrays["logits"]) == len(other_rows.encoded)


def test_cached_outputs_are_those_of_a_forward_pass(tmp_path: Path, rows: Pool) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    outputs = inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    trained = len(rows.train) + len(rows.transfer)  # of the others only logits are kept
    some = np.random.default_rng(0).permutation(trained)[:9]  # other rows together than when they were computed
    batch = collate(rows.encoded, some, rows.pad_id, torch.device("cpu"))
    with torch.inference_mode(), accelerator("cpu").autocast():
        direct = observe(model, batch, SIGNALS)
    found = outputs.batch(SIGNALS, batch)
    torch.testing.assert_close(found.pop("logits"), direct.pop("logits").float(), rtol=0, atol=1e-5)
    assert set(found) == set(direct)
    padding = batch.attention_mask == 0
    assert padding.any()
    for signal, values in found.items():
        of_model = direct[signal]
        if of_model.ndim == 4:  # [batch, heads, seq, head size] --> head by head side by side
            of_model = torch.cat(list(of_model.unbind(1)), dim=2)
        assert values.dtype == torch.bfloat16
        assert not values[padding].any(), signal
        torch.testing.assert_close(values[~padding].float(), of_model[~padding].float(), rtol=2**-8, atol=1e-5, msg=signal)


def test_predictions_stand_in_the_order_of_the_rows(tmp_path: Path, rows: Pool) -> None:
    model = tiny.teacher()
    some = np.random.default_rng(0).permutation(len(rows.encoded))[:30]
    found = inference.predict(model, rows.encoded, some, rows.pad_id, "cpu")
    for place, row in enumerate(some[:8]):
        one = collate(rows.encoded, np.array([row]), rows.pad_id, torch.device("cpu"))
        with torch.inference_mode(), accelerator("cpu").autocast():
            logits = model(input_ids=one.input_ids, attention_mask=one.attention_mask).logits
        np.testing.assert_allclose(found[place], logits[0].float().numpy(), atol=1e-5)


def test_outputs_that_fail_half_way_leave_nothing_that_could_be_taken_for_whole(tmp_path: Path, rows: Pool, cache: Path) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)

    def stop(*event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inference.outputs(model, key, rows, SIGNALS, "cpu", stop)
    assert list((cache / "outputs").iterdir()) == []


def test_outputs_that_the_disk_has_no_room_for_are_refused_with_their_size(
    tmp_path: Path, rows: Pool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, key, _ = load(AS_IT_IS, tmp_path, rows)
    monkeypatch.setattr(inference.shutil, "disk_usage", lambda _: SimpleNamespace(free=room[0]))
    room = [10**9]
    inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    size = sum(path.stat().st_size for path in cache.glob("outputs/*/*.npy"))
    shutil.rmtree(cache / "outputs")
    room = [size // 2]
    with pytest.raises(
        UserError, match=r"the teacher's outputs need 0\.0 GB \(\d signals of [\d,]+ tokens\), and the disk .* set KDSEARCH_CACHE"
    ):
        inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
    room = [size]  # the files' headers are part of it
    inference.outputs(model, key, rows, SIGNALS, "cpu", Events())
