"""What every family promises, on a tiny random teacher of each: a new family is a row in tiny_families.py."""

import re
import subprocess
import sys
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdsearch import cost
from kdsearch.candidate import Candidate, Initialization, Recipe, Term
from kdsearch.distillation.composition import Composition
from kdsearch.distillation.knowledge import shapes_of
from kdsearch.distillation.mistakes import recipe_mistakes
from kdsearch.distillation.signals import explicit_attention, observe
from kdsearch.students.baselines import baselines
from kdsearch.students.build import build
from kdsearch.students.families import (
    FAMILIES,
    architecture_of,
    axis_size,
    depth_of,
    family_of,
    longest,
    mistakes,
    narrow,
    sizes_of,
    teacher_mistakes,
    tensors_of,
)
from kdsearch.students.initialize import BY_PLACE, teacher_layers
from tests.students import tiny_families
from tests.students.tiny_families import CONFIGS, logits, teacher

RANDOM = st.integers(0, 10**6).map(Random)
IN_ANOTHER_PROCESS = """
import pathlib, sys, numpy, torch
from transformers import AutoModelForSequenceClassification
assert not any(name.startswith("kdsearch") for name in sys.modules)
for folder in pathlib.Path(sys.argv[1]).iterdir():
    ids, mask = (torch.from_numpy(numpy.load(folder / f"{name}.npy")) for name in ("ids", "mask"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        numpy.save(folder / "logits.npy", model(input_ids=ids, attention_mask=mask).logits.numpy())
"""
every_family = pytest.mark.parametrize("name", CONFIGS)


def test_every_family_has_a_row() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)
    assert all(teacher_mistakes(config) == [] for config in CONFIGS.values())


@every_family
def test_every_tensor_is_named_with_its_shape(name: str) -> None:
    sizes = sizes_of(CONFIGS[name])
    told = {tensor: tuple(axis_size(role, sizes) for role in roles) for tensor, roles in tensors_of(CONFIGS[name]).items()}
    assert told == {tensor: tuple(weight.shape) for tensor, weight in teacher(name).state_dict().items()}
    assert told == {tensor: tuple(weight.shape) for tensor, weight in teacher(name).named_parameters()}


@every_family
@settings(max_examples=10, deadline=None)
@given(random=RANDOM, layers=st.sampled_from(BY_PLACE))
def test_a_sampled_student_has_the_parameters_of_arithmetic_and_trains(name: str, random: Random, layers: str) -> None:
    shape = tiny_families.architecture(name, random)
    student = build(teacher(name), Candidate(shape, Initialization(layers)), seed=0)
    assert cost.parameters(narrow(CONFIGS[name], shape)) == student.num_parameters()
    some, before = tiny_families.batch(student.config), logits(student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    student(input_ids=some.input_ids, attention_mask=some.attention_mask, labels=some.labels).loss.backward()
    without = [part for part, weight in student.named_parameters() if weight.grad is None or not weight.grad.isfinite().all()]
    assert without == []
    optimizer.step()
    assert logits(student).isfinite().all()
    assert not torch.equal(logits(student), before)


@every_family
@settings(max_examples=20, deadline=None)
@given(random=RANDOM)
def test_a_narrowed_config_says_what_was_asked_and_comes_back(name: str, random: Random) -> None:
    config, shape = CONFIGS[name], tiny_families.architecture(name, random)
    before = config.to_dict()
    narrowed = narrow(config, shape)
    assert config.to_dict() == before
    assert type(narrowed).from_dict(narrowed.to_dict()).to_dict() == narrowed.to_dict()
    found = architecture_of(narrowed)
    assert (found.layers, found.heads, found.head_size, found.ffn) == (shape.layers, shape.heads, shape.head_size, shape.ffn)
    assert shape.kv_heads in (None, found.kv_heads)
    assert shape.embedding in (None, found.embedding or found.width)
    assert shape.positions in (None, longest(narrowed))
    assert architecture_of(narrow(config, found)) == found


def test_students_load_where_kdsearch_is_not_installed(tmp_path: Path) -> None:
    expected = {}
    for name in CONFIGS:
        for n in range(3):
            shape = tiny_families.architecture(name, Random(n))
            student, folder = build(teacher(name), Candidate(shape), seed=0), tmp_path / f"{name} {n}"
            student.save_pretrained(folder)
            some = tiny_families.batch(student.config)
            np.save(folder / "ids.npy", some.input_ids.numpy())
            np.save(folder / "mask.npy", some.attention_mask.numpy())
            expected[folder] = logits(student).numpy()
    subprocess.run([sys.executable, "-I", "-c", IN_ANOTHER_PROCESS, str(tmp_path)], check=True, capture_output=True, cwd=tmp_path)
    for folder, found in expected.items():
        np.testing.assert_allclose(np.load(folder / "logits.npy"), found, atol=1e-5, err_msg=folder.name)


@every_family
@pytest.mark.parametrize("layers", ["uniform", "first", "last", "every_kth", (0, 1, 2, 3)])
def test_a_student_of_the_teacher_s_shape_is_the_teacher(name: str, layers: str | tuple[int, ...]) -> None:
    student = build(teacher(name), Candidate(architecture_of(CONFIGS[name]), Initialization(layers)), seed=0)
    torch.testing.assert_close(logits(student), logits(teacher(name)), rtol=0, atol=0)


@every_family
@pytest.mark.parametrize("layers", ["uniform", "last", "every_kth", (3, 0)])
def test_a_copied_layer_is_the_teacher_s_bit_for_bit(name: str, layers: str | tuple[int, ...]) -> None:
    shape = tiny_families.of_depth(name, 2)
    chosen, source = teacher_layers(layers, 2, 4), teacher(name).state_dict()
    path = re.escape(family_of(CONFIGS[name]).layer_path)
    for tensor, found in build(teacher(name), Candidate(shape, Initialization(layers)), seed=0).state_dict().items():
        origin = re.sub(rf"^{path}\.(\d)", lambda place: place[0][:-1] + str(chosen[int(place[1])][0]), tensor)
        if origin not in family_of(CONFIGS[name]).absent:
            assert torch.equal(found, source[origin]), tensor


@every_family
def test_neurons_that_say_nothing_can_be_cut(name: str) -> None:
    """A teacher whose last third of FFN neurons is dead loses nothing with them: the cut takes the same neurons of every tensor."""
    config, whole = CONFIGS[name], teacher(name).state_dict()
    shape = tiny_families.of_depth(name, 4)
    student_ffn, sizes = shape.width * 2, sizes_of(config)
    alive = {tensor: weight.clone() for tensor, weight in whole.items()}
    for tensor, roles in tensors_of(config).items():
        for axis, role in enumerate(roles):
            for part in range(str(role).count("ffn")):
                dead = torch.arange(student_ffn, sizes["ffn"]) + part * sizes["ffn"]
                alive[tensor].index_fill_(axis, dead, 0.0)
    model = type(teacher(name))(config).eval()
    model.load_state_dict(alive)
    student = build(model, Candidate(tiny_families.of_depth(name, 4, ffn_ratio=2)), seed=0)
    assert sizes_of(student.config)["ffn"] == student_ffn
    torch.testing.assert_close(logits(student), logits(model), rtol=1e-5, atol=1e-5)


@every_family
def test_hidden_states_are_those_that_enter_each_block(name: str) -> None:
    model, depth, entered = teacher(name), depth_of(CONFIGS[name]), []
    blocks = [model.get_submodule(f"{family_of(model.config).layer_path}.{block}") for block in range(depth)]
    hooks = [block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0])) for block in blocks]
    wanted = frozenset({"logits", "hidden.embedding", *(f"hidden.{block}" for block in range(depth))})
    found = observe(model, tiny_families.batch(model.config), wanted)
    for hook in hooks:
        hook.remove()
    for signal, states in zip(("hidden.embedding", "hidden.0", "hidden.1", "hidden.2"), entered, strict=True):
        assert torch.equal(found[signal], states), signal
    assert found["hidden.3"].shape == (3, 16, 32)
    assert torch.equal(found["logits"], logits(model))


@every_family
def test_queries_keys_and_values_are_told_or_refused(name: str) -> None:
    model, some = teacher(name), tiny_families.batch(CONFIGS[name])
    signals = frozenset({"query.0", "key.3", "value.3"})
    if family_of(CONFIGS[name]).attention_path is None:
        with pytest.raises(ValueError, match="computes attention out of sight"):
            observe(model, some, signals)
    else:
        found = observe(model, some, signals)
        assert {signal: tuple(values.shape) for signal, values in found.items()} == dict.fromkeys(signals, (3, 4, 16, 8))
    with explicit_attention(model), torch.inference_mode():
        explicit = model(input_ids=some.input_ids, attention_mask=some.attention_mask).logits
    torch.testing.assert_close(explicit, logits(model), rtol=1e-4, atol=1e-4)
    assert not any(hasattr(module, "captured") for module in model.modules())


@every_family
def test_it_computes_under_bf16_autocast(name: str) -> None:
    model, some = teacher(name), tiny_families.batch(CONFIGS[name])
    with explicit_attention(model), torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = observe(model, some, frozenset({"logits", "hidden.0"}))
    torch.testing.assert_close(found["logits"].float(), logits(model), rtol=0.1, atol=0.2)


@every_family
def test_word_embeddings_can_be_frozen(name: str) -> None:
    model = build(teacher(name), Candidate(architecture_of(CONFIGS[name])), seed=0)
    words = model.get_submodule(family_of(model.config).embedding_path)
    assert words is model.get_input_embeddings()
    assert isinstance(words.weight, Tensor)


@every_family
def test_every_baseline_can_be_cut_out_of_it_and_distilled(name: str) -> None:
    config = CONFIGS[name]
    for baseline in baselines(architecture_of(config), attention=family_of(config).attention_path is not None).values():
        assert mistakes(baseline.architecture, config) == []
        assert recipe_mistakes(baseline.distillation, shapes_of(baseline.architecture, config)) == []


@every_family
def test_what_its_layers_tell_can_be_distilled(name: str) -> None:
    """Every view of a model that its family has, from the teacher's cache on: queries and keys told head by head."""
    config, shape = CONFIGS[name], tiny_families.of_depth(name, 2)
    terms = (Term("kd"), Term("hidden_mse"), Term("embedding_mse"))
    if family_of(config).attention_path:
        terms += (Term("attention_mse"), Term("minilmv2", knobs=(("relation_heads", 8),)))
    composition = Composition(Recipe("all", 1.0, terms), shapes_of(shape, config))
    student, some = build(teacher(name), Candidate(shape), seed=0), tiny_families.batch(config)
    told = observe(teacher(name), some, composition.teacher_signals)
    found = composition(observe(student, some, composition.student_signals), told, some)
    assert found.shape == (3,)
    found.mean().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())
