"""Figures: first the values, as plain data, then their drawing. The values have tests."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from kdsearch.candidate import Candidate, from_dict
from kdsearch.records import Record
from kdsearch.report.front import counts, on_front, picks, trained
from kdsearch.report.study_folder import StudyFolder

NORMAL_95 = 1.96
INK, QUIET, FRONT, BASELINE, TEACHER = "#1f2933", "#9aa5b1", "#0b6e8f", "#c2571a", "#7b3fa0"
TICKS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "xaxis": {"gridcolor": "#eceff2", "zeroline": False, "linecolor": QUIET, "ticks": "outside", "tickcolor": QUIET},
        "yaxis": {"gridcolor": "#eceff2", "zeroline": False, "linecolor": QUIET, "ticks": "outside", "tickcolor": QUIET},
        "margin": {"l": 80, "r": 24, "t": 56, "b": 80},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    }
)


@dataclass(frozen=True)
class Point:
    """One model of a figure. ``latency`` relative to the teacher, ``accuracy_se`` one standard error, ``label`` short, ``text`` long."""

    latency: float
    accuracy: float
    accuracy_se: float
    divergence: float | None
    label: str
    text: str


@dataclass(frozen=True)
class FrontValues:
    """Everything that the figures show; a student stands in exactly one of ``others``, ``outside``, ``baselines`` and ``front``,
    except that a baseline on the front stands in both."""

    teacher: Point
    others: list[Point]
    outside: list[Point]
    baselines: list[Point]
    front: list[Point]
    refused: int
    failed: int


def front_values(folder: StudyFolder) -> FrontValues:
    """What the figures of a study show."""
    best = on_front(folder)
    numbers, chosen, ended = {record.trial for record in best}, picks(folder), counts(folder.records)
    rest = [record for record in trained(folder.records) if record.trial not in numbers and not record.baseline]
    teacher = folder.facts["teacher"]
    text = f"<b>teacher</b><br>accuracy {teacher['accuracy']:.3f} ± {teacher['accuracy_se']:.3f}<br>{teacher['latency_ms']:.2f} ms"
    return FrontValues(
        teacher=Point(1.0, teacher["accuracy"], teacher["accuracy_se"], 0.0, "teacher", text),
        others=[_point(record, {}) for record in rest if record.feasible],
        outside=[_point(record, {}) for record in rest if not record.feasible],
        baselines=[_point(record, {}) for record in trained(folder.records) if record.baseline],
        front=[_point(record, chosen) for record in best],
        refused=ended["refused"],
        failed=ended["failed"],
    )


def front_figure(values: FrontValues) -> go.Figure:
    """Validation accuracy against latency relative to the teacher: everything trained, the front as a step, 95% intervals."""
    figure = go.Figure()
    if values.others:
        figure.add_trace(_markers(values.others, "other students", QUIET, "circle", size=7))
    if values.outside:
        figure.add_trace(_markers(values.outside, "breaks a limit", QUIET, "x-thin-open", size=8))
    if values.front:
        figure.add_trace(_markers(values.front, "front", FRONT, "circle", size=10, mode="lines+markers+text"))
        figure.data[-1].update(line={"shape": "hv", "width": 2}, error_y=_bars(values.front, FRONT))
    if values.baselines:
        figure.add_trace(_markers(values.baselines, "hand-made baselines", BASELINE, "diamond", size=10, mode="markers+text"))
        figure.data[-1].update(error_y=_bars(values.baselines, BASELINE))
    figure.add_trace(_markers([values.teacher], "teacher", TEACHER, "star", size=16))
    figure.data[-1].update(error_y=_bars([values.teacher], TEACHER))
    figure.update_layout(template=TEMPLATE, height=560, hovermode="closest")
    figure.update_xaxes(title="latency relative to the teacher (log)", type="log", tickvals=TICKS, ticktext=[_tick(tick) for tick in TICKS])
    figure.update_yaxes(title={"text": "validation accuracy", "standoff": 16}, tickformat=".2f")
    return figure


def divergence_figure(values: FrontValues) -> go.Figure:
    """Accuracy against the divergence from the teacher: where the smooth score and the noisy one rank students alike."""
    figure = go.Figure()
    groups = [
        ("other students", [*values.others, *values.outside], QUIET, "circle"),
        ("front", values.front, FRONT, "circle"),
        ("hand-made baselines", values.baselines, BASELINE, "diamond"),
    ]
    for name, points, colour, symbol in groups:
        if measured := [point for point in points if point.divergence is not None]:
            trace = _markers(measured, name, colour, symbol, size=9)
            figure.add_trace(trace.update(x=[point.divergence for point in measured], error_y=_bars(measured, colour)))
    figure.update_layout(template=TEMPLATE, height=440, hovermode="closest")
    figure.update_xaxes(title="divergence from the teacher, mean KL(teacher || student) in nats")
    figure.update_yaxes(title="validation accuracy", tickformat=".2f")
    return figure


def in_words(candidate: Candidate) -> str:
    """A candidate in a few words."""
    shape, recipe = candidate.architecture, candidate.distillation
    words = f", {shape.vocabulary:,} tokens" if shape.vocabulary else ""
    terms = " + ".join(f"{term.weight:.3g} {term.knowledge}" for term in recipe.terms)
    start = candidate.initialization
    return (
        f"{shape.layers} layers × {shape.width} wide, {shape.heads} heads, FFN {shape.ffn}{words}; "
        f"initialized from {start.layers} layers, width by {start.width}; "
        f"recipe {recipe.name}: {recipe.hard_weight:.3g} labels{' + ' if terms else ''}{terms}; "
        f"learning rate {candidate.training.learning_rate:.2g}"
    )


def _point(record: Record, chosen: dict[str, int]) -> Point:
    found = record.measurement
    assert found.latency_relative is not None
    assert found.accuracy is not None
    names = [name for name, trial in chosen.items() if trial == record.trial]
    label = record.baseline if record.baseline and not chosen else ", ".join(names)
    head = f"<b>trial {record.trial}{f', baseline {record.baseline}' if record.baseline else ''}{f' ({label})' if names else ''}</b>"
    measured = f"accuracy {found.accuracy:.3f} ± {found.accuracy_se or 0:.3f}, {1 / found.latency_relative:.2f}× faster"
    size = f"{(found.parameters or 0) / 1e6:.2f} M parameters"
    words = "<br>".join(escape(part) for part in in_words(from_dict(record.candidate)).split("; "))
    return Point(
        found.latency_relative,
        found.accuracy,
        found.accuracy_se or 0.0,
        found.divergence,
        label or "",
        f"{head}<br>{measured}, {size}<br>{words}",
    )


def _markers(points: Sequence[Point], name: str, colour: str, symbol: str, *, size: int, mode: str = "markers") -> go.Scatter:
    return go.Scatter(
        x=[point.latency for point in points],
        y=[point.accuracy for point in points],
        text=[point.label for point in points],
        hovertext=[point.text for point in points],
        hovertemplate="%{hovertext}<extra></extra>",
        textposition="middle right" if symbol == "diamond" else "top left",  # beside the interval's bar, not on it
        textfont={"color": colour},
        cliponaxis=False,
        name=name,
        mode=mode,
        marker={"color": colour, "symbol": symbol, "size": size, "line": {"color": colour if "thin" in symbol else "white", "width": 1}},
        line={"color": colour},
    )


def _bars(points: Sequence[Point], colour: str) -> dict[str, object]:
    return {"type": "data", "array": [NORMAL_95 * point.accuracy_se for point in points], "color": colour, "thickness": 1, "width": 3}


def _tick(relative: float) -> str:
    return f"{relative:g}<br>{1 / relative:g}× faster" if relative < 1 else f"{relative:g}"
