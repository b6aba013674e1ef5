import pytest
from synthetic_study import FACTS, candidate

from kdsearch.candidate import from_dict
from kdsearch.report import figures, front


def test_every_trained_student_is_drawn_once(study):
    values = figures.front_values(study)
    on_front_too = sum(record.baseline is not None for record in front.on_front(study))
    drawn = len(values.others) + len(values.outside) + len(values.baselines) + len(values.front) - on_front_too
    assert drawn == len(front.trained(study.records)) == 20
    assert (values.refused, values.failed) == (8, 1)
    assert [point.label for point in values.baselines] == ["no-kd", "distilbert", "tinybert"]
    labels = {name for point in values.front for name in point.label.split(", ") if name}
    assert labels == {"knee", "fastest", "best"}
    assert (values.teacher.latency, values.teacher.accuracy) == (1.0, FACTS["teacher"]["accuracy"])


def test_the_figure_draws_the_values(study):
    values = figures.front_values(study)
    figure = figures.front_figure(values)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["front"].x) == [point.latency for point in values.front]
    assert traces["front"].error_y.array[0] == pytest.approx(1.96 * values.front[0].accuracy_se)
    assert (traces["front"].line.shape, figure.layout.xaxis.type) == ("hv", "log")
    assert "relative to the teacher" in figure.layout.xaxis.title.text
    assert {trace.name for trace in figures.divergence_figure(values).data} == {"other students", "front", "hand-made baselines"}


def test_a_study_without_a_trained_student_draws_the_teacher(fresh_study):
    values = figures.front_values(fresh_study)
    assert [trace.name for trace in figures.front_figure(values).data] == ["teacher"]
    assert len(figures.divergence_figure(values).data) == 0


def test_a_candidate_in_words():
    assert figures.in_words(from_dict(candidate(3, 4, "kd"))) == (
        "3 layers × 128 wide, 4 heads, FFN 512; initialized from uniform layers, width by slice; "
        "recipe kd: 0.5 labels + 1 kd; learning rate 0.0003"
    )
    assert "recipe none: 1 labels;" in figures.in_words(from_dict(candidate(3, 4, "none")))
