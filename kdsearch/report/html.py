"""report.html: one file that holds everything, opens offline and prints. Every text that comes from people is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from kdsearch import guideline
from kdsearch.records import COMPLETE, FAILED, REFUSED, STOPPED, write_text
from kdsearch.report import figures, front
from kdsearch.report.front import Row
from kdsearch.report.study_folder import StudyFolder
from kdsearch.report.style import PAGE
from kdsearch.report.tables import CONFIRMED, confirmed_cells

HEAD = ("model", "trial", "accuracy", "latency, ms", "faster", "parameters", "layers × width", "initialized from", "recipe", "divergence")
MISSING = "–"
PLOT = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}


def write(folder: StudyFolder) -> Path:
    """Write the study's report.html anew; its path."""
    path = folder.path / "report.html"
    write_text(path, page(folder))
    return path


def page(folder: StudyFolder) -> str:
    """The whole report as HTML."""
    trained = front.trained(folder.records)
    sections = [
        _section("What was searched", _searched(folder)),
        _section("The front", _front(folder) if trained else "<p>No student has been trained to the end yet, so there is no front.</p>"),
        *([_section("The front by full trainings", _confirmed(folder.confirmed))] if folder.confirmed else []),
        _section("Fully trained students", _exports(folder)),
        _section("What the trials suggest", _guideline(folder)),
        _section("Trials that were not trained", _untrained(folder)),
        _section("Where and with what", _surroundings(folder.facts)),
    ]
    name = escape(str(folder.facts["name"]))
    return Template(PAGE).substitute(
        name=name,
        lead=_lead(folder),
        cards=_cards(folder),
        sections="\n".join(sections),
        plotly=f"<script>{get_plotlyjs()}</script>" if trained else "",
    )


def _lead(folder: StudyFolder) -> str:
    counts, teacher = front.counts(folder.records), folder.facts["teacher"]
    measured = (
        f"accuracy {_with_error(teacher.get('accuracy'), teacher.get('accuracy_se'))}, {_number(teacher.get('latency_ms'), '.2f')} ms"
    )
    ended = f"{counts[COMPLETE]} trained, {counts[STOPPED]} stopped at a rung, {counts[REFUSED]} refused before training"
    ended += f", {counts[FAILED]} failed"
    ended += f" ({counts['imported']} of them imported)" if "imported" in counts else ""
    return f"Students of <b>{escape(str(teacher['model']))}</b> ({measured}): {ended}, {counts['duplicates']} proposed again."


def _cards(folder: StudyFolder) -> str:
    """The picks: what most readers came for; by full trainings where there are some."""
    what = {"knee": "the front's bend", "fastest": "fastest on the front", "best": "most accurate"}
    found = []
    for name, row in front.picked(folder).items():
        found.append(
            f'<div class="card"><h3>{name} <span>{what[name]}</span></h3><p class="big">{_number(row.faster, ".1f")}× faster</p>'
            f"<p>accuracy {_with_error(row.accuracy, row.accuracy_se)}<br>"
            f"{_millions(row.parameters)} parameters, trial {row.trial}</p>"
            f"<code>kdsearch train {_place(folder)} --pick {name}</code></div>"
        )
    return f'<div class="cards">{"".join(found)}</div>' if found else ""


def _searched(folder: StudyFolder) -> str:
    facts, spec = folder.facts, folder.facts.get("spec", {})
    task, search, proxy = facts.get("task", {}), spec.get("search", {}), spec.get("proxy", {})
    limits = [
        f"{key} {'≥' if key == 'accuracy_relative' else '≤'} {value:g}"
        for key, value in spec.get("limits", {}).items()
        if value is not None
    ]
    labels = task.get("classes", task.get("labels", []))
    counted = [
        f"{task[part]:,} {part.replace('_', ' ')}" for part in ("train", "transfer", "validation", "held_out", "test") if part in task
    ]
    budget = [f"{search[key]} {key}" for key in ("minutes", "trials") if search.get(key) is not None]
    pairs = {
        "Teacher": f"{facts['teacher']['model']}, {_millions(facts['teacher'].get('parameters'))} parameters",
        "Data": f"{spec.get('task', {}).get('data', MISSING)}, {len(labels)} classes: {', '.join(counted)} rows",
        "Target": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in spec.get("target", {}).items()),
        "Limits": ", ".join(limits) or "none",
        "Budget": f"{', '.join(budget) or MISSING}, sampler {search.get('sampler', MISSING)}, seed {search.get('seed', MISSING)}",
        "Training per trial": ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in proxy.items()),
    }
    for section, domains in facts.get("space", {}).items():
        inside = domains.items() if isinstance(domains, dict) and "one_of" not in domains else [("one of", domains)]
        pairs[f"Space: {section}"] = "; ".join(f"{key} {guideline.in_words(domain)}" for key, domain in inside)
    return _definitions(pairs)


def _front(folder: StudyFolder) -> str:
    values = figures.front_values(folder)
    volume = front.document(folder)["hypervolume"]
    drawn = _figure(figures.front_figure(values), "front", "Validation accuracy against latency relative to the teacher")
    second = _figure(figures.divergence_figure(values), "divergence", "Validation accuracy against divergence from the teacher")
    rows = front.rows(folder)
    table = _table(HEAD, [_cells(row) for row in rows], ["front" if row.picks else "" for row in rows])
    return (
        f"{drawn}<p class='note'>Bars are 95% intervals (1.96 standard errors on the validation rows); students whose bars overlap may not "
        f"differ. Hover over a point for its recipe. {values.refused} refused and {values.failed} failed trials have no accuracy and are "
        f"not drawn.</p>{table}<p class='note'>± is one standard error; brackets hold the 95% interval of the median latency per batch. "
        f"Divergence: mean KL(teacher || student) in nats. Accuracy is that of validation, on which the students were chosen; the test "
        f"accuracy of fully trained students stands below. Hypervolume {volume['value']:.4f}, reference accuracy "
        f"{volume['reference'][0]:.3f} and relative latency {volume['reference'][1]:g}.</p>{second}"
    )


def _place(folder: StudyFolder) -> str:
    """The study's folder as a command names it from where its parent stands."""
    return escape(f"{folder.path.parent.name}/{folder.path.name}")


def _confirmed(document: dict[str, Any]) -> str:
    """What confirmed.json says."""
    rows = document["students"]
    table = _table(
        [escape(name) for name in CONFIRMED],
        [[escape(cell) or MISSING for cell in confirmed_cells(row, document.get("picks", {}))] for row in rows],
        ["front" if row["on_front"] else "" for row in rows],
    )
    said = "".join(f"<li>{escape(str(sentence))}</li>" for sentence in document["sentences"])
    return (
        f"{table}<p class='note'>Validation accuracy after {escape(str(document['steps']))} steps, the mean over the seeds; ± is one "
        f"standard error, of the seeds and of the rows. Latency is measured anew.</p><ul>{said}</ul>"
    )


def _exports(folder: StudyFolder) -> str:
    if not folder.exports:
        command = f"<code>kdsearch train {_place(folder)} --pick knee</code>"
        return f"<p>None yet. {command} distils a pick at full length and exports it.</p>"
    head = ("trial", "steps", "validation accuracy", "test accuracy", "teacher's test accuracy", "faster")
    cells = [
        [
            escape(str(export["trial"])),
            f"{export['steps']:,}",
            _with_error(export.get("validation_accuracy"), export.get("validation_accuracy_se")),
            _with_error(export.get("test_accuracy"), export.get("test_accuracy_se")),
            _with_error(export.get("teacher_test_accuracy"), export.get("teacher_test_accuracy_se")),
            f"{1 / export['latency_relative']:.1f}×" if export.get("latency_relative") else MISSING,
        ]
        for export in folder.exports
    ]
    return f"{_table(head, cells)}<p class='note'>The test rows were looked at once per export, after all choices had been made.</p>"


def _guideline(folder: StudyFolder) -> str:
    found = guideline.statements(folder.records)
    parts = []
    for grade, title in ((guideline.SUGGESTIVE, "Suggestive"), (guideline.NO_EVIDENCE, "No evidence")):
        items = "".join(f"<li>{escape(one.statement)}</li>" for one in found if one.grade == grade) or "<li>Nothing.</li>"
        parts.append(f"<h3>{title}</h3><ul>{items}</ul>")
    counted = escape(guideline.region(found, folder.facts)["trials"])
    return f"<p>About this study only: {counted}.</p>{''.join(parts)}<p class='note'>{escape(guideline.METHOD)}</p>"


def _untrained(folder: StudyFolder) -> str:
    states = {
        STOPPED: "stopped at a rung: others of their latency were closer to the teacher",
        REFUSED: "refused: breaks a limit, found before training",
        FAILED: "failed",
    }
    parts = []
    for state, title in states.items():
        some = [record for record in folder.records if record.measurement.state == state and record.duplicate_of is None]
        cells = [[str(record.trial), escape(record.measurement.reason or MISSING)] for record in some]
        listed = f"<details><summary>{len(some)} {title}</summary>{_table(('trial', 'reason'), cells)}</details>"
        parts.append(listed if some else f"<p>0 {title.split(':')[0]}.</p>")
    return "".join(parts)


def _surroundings(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())
    return _definitions({"Machine": str(facts.get("machine", MISSING)), "Versions": versions or MISSING})


def _cells(row: Row) -> list[str]:
    marks = "".join(f' <span class="mark">{pick}</span>' for pick in row.picks)
    over = f' <span class="over">breaks {escape(row.breaks)}</span>' if row.breaks else ""
    interval = (
        f" [{row.latency_ms_low:.2f}, {row.latency_ms_high:.2f}]"
        if row.latency_ms_low is not None and row.latency_ms_high is not None
        else ""
    )
    return [
        f"{escape(row.role)}{marks}{over}",
        MISSING if row.trial is None else str(row.trial),
        _with_error(row.accuracy, row.accuracy_se),
        f"{_number(row.latency_ms, '.2f')}{interval}",
        f"{_number(row.faster, '.1f')}×",
        _millions(row.parameters),
        f"{row.layers} × {row.width}" if row.layers is not None else MISSING,
        escape(row.initialization or MISSING),
        escape(row.recipe or MISSING),
        _number(row.divergence, ".3f"),
    ]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _definitions(pairs: dict[str, str]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(key)}</dt><dd>{escape(value) or MISSING}</dd>' for key, value in pairs.items())}</dl>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = ()) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f'<th scope="col">{name}</th>' for name in head)
    body = [f"{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows]
    names = [*classes, *[""] * (len(body) - len(classes))]
    lines = "".join(f'<tr class="{name}">{row}' if name else f"<tr>{row}" for name, row in zip(names, body, strict=True))
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _figure(figure: Any, name: str, label: str) -> str:
    drawn = to_html(figure, include_plotlyjs=False, full_html=False, div_id=name, config=PLOT)
    return f'<figure role="img" aria-label="{label}">{drawn}</figure>'


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)


def _with_error(value: float | None, error: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _millions(count: float | None) -> str:
    return MISSING if count is None else f"{count / 1e6:.2f} M"
