"""Optuna Dashboard on a study: a note per trial, the feasible front as a figure, and the server on this machine only."""

import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.candidate import from_dict
from kdsearch.errors import UserError
from kdsearch.records import COMPLETE, REFUSED, Record
from kdsearch.report import front
from kdsearch.report.figures import front_figure, front_values, in_words
from kdsearch.report.study_folder import StudyFolder

FIGURE = "kdsearch-front"
# The console script may not be on the PATH. Ctrl-C reaches both processes; this one ends the other.
SERVER = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); from optuna_dashboard._cli import main; sys.exit(main())"
ARTIFACTS = "artifacts"


def note(record: Record, facts: dict[str, Any]) -> str:
    """A trial's Markdown note: the candidate in words, what was measured beside the teacher, why it was not trained."""
    found, teacher = record.measurement, facts["teacher"]
    lines = [f"**{found.state}**{f', baseline {record.baseline}' if record.baseline else ''}"]
    if record.imported_from:
        lines.append(f"Imported: {record.imported_from} found this; it was not evaluated here.")
    if record.duplicate_of is not None:
        lines.append(f"The same student as trial {record.duplicate_of}; its result is used, it was not trained again.")
    if found.reason:
        lines.append(f"{'Refused' if found.state == REFUSED else 'Reason'}: {found.reason}")
    if found.state == COMPLETE and not record.feasible:
        lines.append("Breaks a limit of the study, so it is never on the front.")
    lines += [in_words(from_dict(record.candidate)).replace("; ", "  \n"), _measured(record, teacher)]
    return "\n\n".join(line for line in lines if line)


def publish(study: optuna.Study, folder: StudyFolder) -> None:
    """Put the feasible front and a note into the study, where the dashboard shows them.

    Needed because the dashboard's "Best Trials" (0.21) ignores limits and does not know the teacher.
    """
    chosen = front.picks(folder)
    named = ", ".join(f"{name}: trial {trial}" for name, trial in chosen.items()) or "no student has been trained yet"
    by = "full trainings" if folder.confirmed else "short distillations"
    limits = [name for name, value in folder.facts["spec"]["limits"].items() if value is not None] or ["none"]
    body = (
        f"**Students of {folder.facts['teacher']['model']}**\n\nPicks of the front, by {by}: {named}.\n\n"
        f"Constraints of a trial, above 0 where broken, in their order: {', '.join(limits)}; and where vocabularies vary, whether the "
        "recipe works with this one.\n\n"
        "The card *Best Trials* ignores the study's limits, so it may list students that break them. The front inside the limits, "
        f"with the teacher and the baselines, is the figure **{FIGURE}** below and the report.html in the study's folder."
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its functions, and its import, warn that they are experimental
        from optuna_dashboard import save_note, save_plotly_graph_object  # noqa: PLC0415

        save_plotly_graph_object(study, front_figure(front_values(folder)), graph_object_id=FIGURE)
        save_note(study, body)


def serve(folder: StudyFolder, storage: str, host: str = "127.0.0.1", port: int = 8080) -> None:
    """Serve the dashboard until Ctrl-C stops it. It has no login and can delete studies, so it listens on this machine only by default.

    Raises:
        UserError: there is no study in the storage, or the port is taken.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server must not outlive this process
    server = start(folder, storage, host, port)
    try:
        print(f"http://{host}:{port}/dashboard  (Ctrl-C stops it)", flush=True)
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def start(folder: StudyFolder, storage: str, host: str, port: int) -> subprocess.Popen[bytes]:
    """The dashboard as a process of its own.

    Raises:
        UserError: there is no study in the storage, or the port is taken.
    """
    messages = [*_storage_mistakes(storage), *_port_mistakes(host, port)]
    if messages:
        raise UserError(messages)
    artifacts = folder.path / ARTIFACTS
    options = ["--artifact-dir", str(artifacts)] if artifacts.is_dir() else []
    return subprocess.Popen([sys.executable, "-c", SERVER, storage, "--host", host, "--port", str(port), "--quiet", *options])


def _storage_mistakes(storage: str) -> list[str]:
    file = storage.removeprefix("sqlite:///")
    if file != storage and not Path(file).is_file():  # asking SQLite for its studies would create the file
        return [f"storage {storage}: {file} does not exist; run the study first, or give its storage with --storage"]
    try:
        studies = optuna.get_all_study_names(storage)
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError, optuna.exceptions.OptunaError) as error:
        return [f"storage {storage}: cannot be opened ({str(error).splitlines()[0]}); correct it with --storage"]
    return [] if studies else [f"storage {storage}: holds no study; run the study first, or give its storage with --storage"]


def _port_mistakes(host: str, port: int) -> list[str]:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return [f"port {port}: cannot be opened on {host} ({error.strerror}); choose another with --port"]
    return []


def _measured(record: Record, teacher: dict[str, Any]) -> str:
    found = record.measurement
    rows = [
        ("accuracy", _pair(found.accuracy, found.accuracy_se), _pair(teacher.get("accuracy"), teacher.get("accuracy_se"))),
        ("latency, ms", _short(found.latency_ms), _short(teacher.get("latency_ms"))),
        ("latency, relative", _short(found.latency_relative), "1"),
        ("parameters", _count(found.parameters), _count(teacher.get("parameters"))),
        ("divergence, nats", _pair(found.divergence, found.divergence_se), "0"),
    ]
    known = [f"| {name} | {own} | {his} |" for name, own, his in rows if own]
    return "\n".join(["| | student | teacher |", "|---|---|---|", *known]) if known else ""


def _pair(value: float | None, error: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"
