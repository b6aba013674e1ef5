import json
import subprocess
import sys

import pytest
from synthetic_study import CONFIRMED, FACTS, of_its_trials, write_study

from kdsearch.errors import UserError
from kdsearch.report import study_folder


def test_a_folder_gives_facts_records_and_exports(study):
    assert study.facts == FACTS
    assert [record.trial for record in study.records] == list(range(30))
    assert [export["trial"] for export in study.exports] == [4]


def test_full_trainings_of_other_students_do_not_count(study):
    def confirmed(document):
        (study.path / "confirmed.json").write_text(json.dumps(document), encoding="utf-8")
        return study_folder.load(study.path).confirmed

    own = of_its_trials(CONFIRMED, study)
    assert confirmed(own) == own
    other = {**own["students"][0], "candidate": study.records[7].candidate}  # that trial of a study that was here before
    assert confirmed({**own, "students": [other, *own["students"][1:]]}) is None


@pytest.mark.parametrize(("text", "name"), [("name: reviews\n", "reviews"), ("limits: {}\n", "x")])
def test_a_study_file_means_the_folder_of_its_name_beside_it(tmp_path, text, name):
    (tmp_path / "x.yaml").write_text(text)
    write_study(tmp_path / name)
    assert study_folder.load(tmp_path / "x.yaml").path == tmp_path / name


def test_a_study_whose_first_trial_runs_has_no_records_yet(tmp_path):
    write_study(tmp_path)
    (tmp_path / "trials.jsonl").unlink()
    assert study_folder.load(tmp_path).records == []


def test_what_is_no_study_is_refused_with_the_fix(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match="does not exist; give a study's folder"):
        study_folder.load(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"has no study\.json; make it with 'kdsearch run'"):
        study_folder.load(tmp_path)
    with pytest.raises(UserError, match=r"must be a study's folder or its \.yaml file"):
        study_folder.load(tmp_path / "notes.txt")


@pytest.mark.parametrize(("name", "text"), [("study.json", "{"), ("trials.jsonl", '{"trial": 1}\n'), ("trials.jsonl", "[1]\n")])
def test_a_broken_file_is_named(tmp_path, name, text):
    write_study(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name}: is not as kdsearch wrote it"):
        study_folder.load(tmp_path)


def test_reports_need_neither_torch_nor_optuna(study):
    code = (
        "import sys, pathlib; from kdsearch.report import html, study_folder; "
        f"html.write(study_folder.load(pathlib.Path({json.dumps(str(study.path))}))); "
        "print(sorted({'torch', 'optuna', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
