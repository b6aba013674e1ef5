"""The command line: one function per command. Exit status 0 done, 2 the user's input was wrong, 1 anything else."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from kdsearch import beside
from kdsearch.errors import UserError

# Threads that wait for each other must not spin while another program wants the core: a training step of two threads on two cores,
# with one busy neighbour, took 0.65 to 0.73 s like this and 1.1 to 3.8 s without. Read by OpenMP when torch is imported, below.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# oneDNN keeps 1,024 compiled matrix products, some 300 MB, of shapes that no later student has; a training step needs some dozens.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")

app = typer.Typer(
    help="Finds the best distilled student of a transformer: accuracy against measured latency.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
INTERRUPTED = 130  # what typer makes of Ctrl-C
errors = Console(stderr=True, soft_wrap=True, highlight=False)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")]
StudyPlace = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's folder, or its study file.")]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="The study's folder; by default it stands beside the study file.")]


@app.command()
def run(
    study: StudyFile,
    minutes: Annotated[float | None, typer.Option(min=0.01, help="Minutes of search in all, instead of the study file's.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Trials in all, instead of the study file's.")] = None,
    flops: Annotated[
        float | None, typer.Option(min=1, help="FLOPs of training in all, the teacher's answers among them, instead of the study file's.")
    ] = None,
    finalists: Annotated[
        int | None, typer.Option(min=0, help="Students of the front that are distilled in full at the end, inside the minutes.")
    ] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="Optuna storage; by default study.db in the study's folder.")] = None,
    out: Out = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed, instead of the study file's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that evaluate side by side; by default one for each core that computes, up to 8.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="STUDY",
            help="Start from an earlier study, a folder or a study file: its results where teacher, data, target, proxy and machine are "
            "the same, else its front to try first. May be given several times.",
        ),
    ] = None,
) -> None:
    """Search for the best students. Started again, it resumes."""
    if workers != 1 and (os.cpu_count() or 1) > 1:
        beside.start_importing()
    from kdsearch.commands import run_study

    budget = {"minutes": minutes, "trials": trials, "flops": flops, "finalists": finalists}
    run_study(study, out, storage, {**budget, "seed": seed, "workers": workers}, earlier or [])


@app.command()
def check(study: StudyFile) -> None:
    """Read a study and say what would run, and for about how long. Trains and writes nothing."""
    from kdsearch.commands import check_study

    check_study(study)


@app.command()
def front(study: StudyPlace, as_json: Annotated[bool, typer.Option("--json", help="The front as JSON.")] = False) -> None:
    """Show the Pareto front with the teacher and the baselines."""
    from kdsearch.report import front as report_front
    from kdsearch.report import study_folder, tables

    folder = study_folder.load(study)
    if as_json:
        typer.echo(json.dumps(report_front.document(folder), indent=2))
    else:
        tables.show_front(folder, Console())


@app.command()
def rerun(study: StudyPlace, trial: Annotated[int, typer.Argument(help="Number of a recorded trial.")]) -> None:
    """Evaluate one recorded candidate again, beside what was recorded. Changes nothing in the study."""
    from kdsearch.commands import rerun_trial

    rerun_trial(study, trial)


@app.command()
def train(
    study: StudyPlace,
    pick: Annotated[
        str, typer.Option(metavar="knee|fastest|best|TRIAL", help="Which student of the front, or any trial by its number.")
    ] = "knee",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the full distillation, instead of the study file's.")] = None,
) -> None:
    """Distil a pick at full length and export it as a Hugging Face folder."""
    from kdsearch.commands import train_pick

    train_pick(study, pick, steps)


@app.command()
def confirm(
    study: StudyPlace,
    finalists: Annotated[int, typer.Option(min=1, help="How many students: of the front, then its near neighbours.")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Full distillations of each, with other seeds.")] = 2,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of a full distillation, instead of the study file's.")] = None,
) -> None:
    """Distil the front in full, with seeds and baselines; says how well the search ranked. Started again, it resumes."""
    from kdsearch.commands import confirm_study

    confirm_study(study, finalists, seeds, steps)


@app.command()
def guideline(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Folders or files of one or several studies.")],
) -> None:
    """Write what the trials show about each axis, with evidence: guideline.md and guideline.json."""
    from kdsearch.commands import write_guideline

    for study in studies:
        typer.echo(write_guideline(study))


@app.command()
def report(study: StudyPlace) -> None:
    """Write report.html, one self-contained file."""
    from kdsearch.report import html, study_folder

    typer.echo(html.write(study_folder.load(study)))


@app.command()
def dashboard(
    study: StudyPlace,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="Optuna storage; by default study.db in the study's folder.")] = None,
) -> None:
    """Open the study in Optuna Dashboard, on 127.0.0.1 only. Ctrl-C stops it."""
    from kdsearch.report import dashboard as served
    from kdsearch.report import study_folder

    folder = study_folder.load(study)
    served.serve(folder, storage or f"sqlite:///{folder.path / 'study.db'}", port=port)


def main(call: Callable[[], Any] = app) -> None:
    """Run a command; a mistake of the user ends with its message and status 2, an interrupt with how to go on and status 1."""
    try:
        call()
    except UserError as error:
        for message in error.messages:
            errors.print(f"[red]error:[/red] {escape(message)}")
        sys.exit(2)
    except RuntimeError as error:
        errors.print(f"[red]failed:[/red] {escape(str(error))}")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        errors.print("Stopped. Finished trials are kept; the same command goes on from here.")
        sys.exit(1)
