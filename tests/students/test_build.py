import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from kdsearch import space_file
from kdsearch.candidate import Architecture, Candidate, Initialization
from kdsearch.students.build import build, skeleton
from kdsearch.students.importance import calibrate
from kdsearch.students.removal import dropped
from tests import tiny

TEACHER, SPACE = tiny.teacher(), space_file.parse(tiny.space_content())
BATCH = tiny.batch([7, 12])
MEASURED = replace(calibrate(TEACHER, [BATCH], moments=True), dropped=dropped(TEACHER, [BATCH]))
IN_ANOTHER_PROCESS = """
import sys, numpy, torch
from transformers import AutoModelForSequenceClassification
assert not any(name.startswith("kdsearch") for name in sys.modules)
ids, mask = (torch.from_numpy(numpy.load(f"{sys.argv[1]}/{name}.npy")) for name in ("ids", "mask"))
for folder in sys.argv[2:]:
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        numpy.save(f"{folder}/logits.npy", model(input_ids=ids, attention_mask=mask).logits.numpy())
"""


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=BATCH.input_ids, attention_mask=BATCH.attention_mask).logits.numpy()


@settings(max_examples=20, deadline=None)
@given(candidate=tiny.candidates(SPACE), seed=st.integers(0, 5))
def test_a_saved_student_is_the_same_when_loaded(candidate: Candidate, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    student, folder = build(TEACHER, candidate, seed, MEASURED), tmp_path_factory.mktemp("student")
    student.save_pretrained(folder)
    back = AutoModelForSequenceClassification.from_pretrained(folder)
    np.testing.assert_allclose(logits(back), logits(student), atol=1e-6)


def test_a_saved_student_is_the_same_where_kdsearch_is_not_installed(tmp_path: Path) -> None:
    shapes = [tiny.narrower(), tiny.narrower(layers=1, heads=1), tiny.SHAPE]
    students = [build(TEACHER, Candidate(shape, Initialization("last")), seed=1) for shape in shapes]
    folders = [tmp_path / str(n) for n in range(len(shapes))]
    np.save(tmp_path / "ids.npy", BATCH.input_ids.numpy())
    np.save(tmp_path / "mask.npy", BATCH.attention_mask.numpy())
    for student, folder in zip(students, folders, strict=True):
        student.save_pretrained(folder)
    command = [sys.executable, "-I", "-c", IN_ANOTHER_PROCESS, str(tmp_path), *map(str, folders)]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    for student, folder in zip(students, folders, strict=True):
        np.testing.assert_allclose(np.load(folder / "logits.npy"), logits(student), atol=1e-5)


def test_a_student_is_decided_by_its_seed_and_leaves_the_random_state_alone() -> None:
    candidate = Candidate(tiny.narrower(), Initialization("random"))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, again, other = (logits(build(TEACHER, candidate, seed)) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_a_student_is_float32_ready_to_be_timed_and_wholly_trainable() -> None:
    student = build(TEACHER, Candidate(tiny.narrower()), seed=0)
    assert not student.training
    assert {(weight.dtype, weight.device.type) for weight in student.parameters()} == {(torch.float32, "cpu")}
    assert all(weight.requires_grad for weight in student.parameters())


def test_a_skeleton_has_the_student_s_tensors_and_no_memory() -> None:
    shape = Architecture(3, 2, 6, 2)
    bones, student = skeleton(TEACHER.config, shape), build(TEACHER, Candidate(shape), seed=0)
    assert {weight.device.type for weight in bones.parameters()} == {"meta"}
    assert {k: v.shape for k, v in bones.state_dict().items()} == {k: v.shape for k, v in student.state_dict().items()}
