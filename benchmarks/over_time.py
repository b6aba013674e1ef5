"""How the hypervolume of studies grew over the minutes of their search, side by side.

    python benchmarks/over_time.py FOLDER... [--minutes 8] [--out benchmarks/over_time.md]

A study's clock starts with its first trial; what each found counts from its end, as its storage (study.db in the folder) tells.
"""

import argparse
import datetime
from dataclasses import replace
from pathlib import Path

import optuna

from kdsearch.report import front, study_folder
from kdsearch.report.study_folder import StudyFolder
from kdsearch.study_store import stored_records


def ends(folder: StudyFolder) -> dict[int, float]:
    """Minutes from the first trial's start to each trial's end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=folder.facts["name"], storage=f"sqlite:///{folder.path / 'study.db'}")
    trials = [trial for trial in study.trials if trial.datetime_start and trial.datetime_complete]
    known, first = {record.trial for record in stored_records(study).values()}, min(trial.datetime_start for trial in trials)
    return {trial.number: (trial.datetime_complete - first).total_seconds() / 60 for trial in trials if trial.number in known}


def at(folder: StudyFolder, when: dict[int, float], minute: float) -> tuple[int, float]:
    """Candidates that were judged until then, and the hypervolume of their front."""
    then = [record for record in folder.records if when.get(record.trial, float("inf")) <= minute]
    judged = [record for record in then if record.baseline is None and record.duplicate_of is None]
    return len(judged), front.document(replace(folder, records=then))["hypervolume"]["value"]


def document(folders: list[StudyFolder], minutes: int) -> str:
    """The table."""
    when = [ends(folder) for folder in folders]
    head = "".join(f" candidates, {n + 1} | hypervolume, {n + 1} |" for n in range(len(folders)))
    rows = ""
    for minute in range(1, minutes + 1):
        found = [at(folder, some, minute) for folder, some in zip(folders, when, strict=True)]
        rows += f"| {minute} |" + "".join(f" {count} | {value:.3f} |" for count, value in found) + "\n"
    studies = "\n".join(
        f"{n + 1}. {folder.facts['name']}: {folder.facts['machine']}, {folder.facts['workers']} workers" for n, folder in enumerate(folders)
    )
    return f"""# How the front grew

`python benchmarks/over_time.py FOLDER...`, {datetime.date.today().isoformat()}

{studies}

| minute |{head}
|---|{"---|---|" * len(folders)}
{rows}
Candidates are those judged, refused and stopped ones too, without baselines and duplicates. Hypervolume as in front.json (reference:
the largest class and the teacher's latency).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--minutes", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/over_time.md"))
    options = parser.parse_args()
    options.out.write_text(document([study_folder.load(place) for place in options.folders], options.minutes), encoding="utf-8")
    print(options.out)
