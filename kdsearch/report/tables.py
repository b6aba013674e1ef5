"""Tables on a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from kdsearch import remarks
from kdsearch.report.front import Row, counts, on_front, rows, unconfirmed
from kdsearch.report.study_folder import StudyFolder

COLUMNS = ("", "trial", "accuracy", "ms [95 %]", "faster", "size", "shape", "starts from", "recipe", "divergence")
CONFIRMED = ("* front by full trainings", "trial", "accuracy", "by the proxy", "divergence", "faster", "size", "seeds")
WIDE_ENOUGH = 160
# What a narrow terminal does without, the first of them first.
SPARED = ("divergence", "starts from", "ms [95 %]", "recipe", "size", "shape")


def show_front(folder: StudyFolder, console: Console) -> None:
    """Teacher, baselines and front; ± is one standard error, [ ] a 95 % interval; picks are marked."""
    # A log file has no width of its own; a table cut to 80 columns there would be unreadable.
    place = console if console.is_terminal else Console(file=console.file, width=WIDE_ENOUGH)
    tables = (_table(folder, SPARED[:spared]) for spared in range(len(SPARED) + 1))
    place.print(next((table for table in tables if _width(table, place) <= place.width), _table(folder, SPARED)))
    console.print(", ".join(f"{number} {name}" for name, number in counts(folder.records).items()), highlight=False)
    if folder.confirmed:
        show_confirmed(folder.confirmed, folder.facts["name"], console)
        if remark := remarks.on_picks(unconfirmed(folder), len(on_front(folder))):
            console.print(remark, markup=False, highlight=False)


def show_confirmed(document: dict[str, Any], name: str, console: Console) -> None:
    """The students that were trained in full, fastest first, and what they tell of the proxy; ± is one standard error."""
    seeds = len(document["seeds"])
    table = Table(
        title=f"{name}: {document['steps']} steps, {seeds} seed{'s' if seeds > 1 else ''}", title_justify="left", caption_justify="left"
    )
    table.caption = "± one standard error, of the seeds and of the rows · front: by the short distillations, * by the full ones"
    for column in CONFIRMED:
        table.add_column(column, justify="left" if column == CONFIRMED[0] else "right", no_wrap=True)
    for row in document["students"]:
        table.add_row(
            *confirmed_cells(row, document.get("picks", {})), style="bold" if row["on_front"] else None if row["feasible"] else "dim"
        )
    place = console if console.is_terminal else Console(file=console.file, width=WIDE_ENOUGH)
    place.print(table)
    console.print("\n".join(document["sentences"]), markup=False, highlight=False)


def confirmed_cells(row: dict[str, Any], picks: dict[str, int]) -> list[str]:
    """A student of confirmed.json as text."""
    chosen = [name for name, trial in picks.items() if trial == row["trial"]]
    marks = "".join(f" *{name}" for name in chosen) or (" *" if row["on_front"] else "")
    numbers = {name: row[name] for name in ("proxy_accuracy", "divergence")}
    return [
        row["role"] + marks + ("" if row["feasible"] or not row["seeds"] else f" (breaks {row.get('breaks') or 'a limit'})"),
        "" if row["trial"] is None else str(row["trial"]),
        "not trained" if row["accuracy"] is None else f"{row['accuracy']:.3f} ± {row['accuracy_se']:.3f}",
        *("" if value is None else f"{value:.3f}" for value in numbers.values()),
        "" if row["latency_relative"] is None else f"{1 / row['latency_relative']:.2f}x",
        "" if row["parameters"] is None else f"{row['parameters'] / 1e6:.2f}M",
        str(row["seeds"]),
    ]


def _width(table: Table, console: Console) -> int:
    """The columns that a table takes when none is cut."""
    return console.measure(table, options=console.options.update(max_width=10 * WIDE_ENOUGH)).maximum


def _table(folder: StudyFolder, spared: Sequence[str]) -> Table:
    table = Table(title=f"{folder.facts['name']}: Pareto front", title_justify="left", caption_justify="left")
    table.caption = "± one standard error · faster: than the teacher timed in turns with it, which makes the front, not ms · * pick"
    kept = [place for place, column in enumerate(COLUMNS) if column not in spared]
    for column in (COLUMNS[place] for place in kept):
        table.add_column(column, justify="left" if column in ("", "starts from", "recipe") else "right", no_wrap=True)
    for row in rows(folder):
        cells = _cells(row)
        table.add_row(*(cells[place] for place in kept), style="bold" if row.picks else "dim" if row.breaks else None)
    return table


def _cells(row: Row) -> list[str]:
    role = row.role + "".join(f" *{pick}" for pick in row.picks) + (f" (breaks {row.breaks})" if row.breaks else "")
    interval = f" [{row.latency_ms_low:.2f}, {row.latency_ms_high:.2f}]" if row.latency_ms_low and row.latency_ms_high else ""
    return [
        role,
        "" if row.trial is None else str(row.trial),
        "" if row.accuracy is None else f"{row.accuracy:.3f} ± {row.accuracy_se or 0:.3f}",
        "" if row.latency_ms is None else f"{row.latency_ms:.2f}{interval}",
        "" if row.faster is None else f"{row.faster:.2f}x",
        "" if row.parameters is None else f"{row.parameters / 1e6:.2f}M",
        "" if row.layers is None else f"{row.layers} x {row.width}",
        row.initialization or "",
        row.recipe or "",
        "" if row.divergence is None else f"{row.divergence:.4f}",
    ]
