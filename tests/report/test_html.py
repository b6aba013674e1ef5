import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from synthetic_study import CONFIRMED, EXPORT, FACTS, of_its_trials, study_records, write_study

from kdsearch.report import front, html, study_folder

BROWSER = shutil.which("chromium")
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
VOID = {"meta", "br"}
EVIL = "<script>alert(1)</script>&\"'"


class Checked(HTMLParser):
    """Collects the visible text and what would be fetched; complains about tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.fetched = [], [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def checked(page):
    parser = Checked()
    parser.feed(page)
    assert parser.open == []
    return parser


def test_the_page_is_whole_and_fetches_nothing(study):
    path = html.write(study)
    assert path == study.path / "report.html"
    page = checked(path.read_text(encoding="utf-8"))
    assert page.fetched == []
    text = " ".join(" ".join(page.text).split())
    for part in [
        "Students of package://a_teacher/model (accuracy 0.871 ± 0.009, 9.40 ms): 20 trained, 0 stopped at a rung, "
        "8 refused before training, 1 failed",
        "latency_relative ≤ 0.5",
        "6 minutes, sampler tpe, seed 0",
        "8,000 train",
        "baseline distilbert",
        "breaks a limit",
        "RuntimeError: <b>out of memory</b>",
        "exceeds the limit 0.5",
        "0.840 ± 0.010",
        "looked at once per export",
        "No evidence",
        "20 trained students, 3 of them hand-made baselines",
        "torch 2.6, optuna 5.0.0",
    ]:
        assert part in text, part


def test_a_study_without_a_trained_student_says_so(fresh_study):
    page = html.page(fresh_study)
    assert "No student has been trained to the end yet" in " ".join(checked(page).text)
    assert len(page) < 50_000


def test_everything_from_people_is_escaped(tmp_path):
    spec = {**FACTS["spec"], "task": {"data": EVIL}, "limits": {EVIL: 1.0}, "search": {"sampler": EVIL}}
    facts = {
        **FACTS, "name": EVIL, "spec": spec, "teacher": {**FACTS["teacher"], "model": EVIL}, "machine": EVIL, "versions": {EVIL: EVIL},
        "space": {"architecture": {"layers": {"choice": [EVIL]}}, "distillation": {"one_of": {EVIL: {}}}},
        "task": {**FACTS["task"], "classes": [EVIL]},
    }  # fmt: skip
    found = study_records()
    for record in found:
        record.candidate["distillation"]["name"] = EVIL
    page = html.page(write_study(tmp_path, found, facts, [{**EXPORT, "trial": EVIL}]))
    assert "<script>alert(1)" not in page
    assert EVIL in " ".join(checked(page).text)


def with_confirmed(study, document):
    document = of_its_trials(document, study)
    (study.path / "confirmed.json").write_text(json.dumps(document), encoding="utf-8")
    return " ".join(" ".join(checked(html.page(study_folder.load(study.path))).text).split())


def test_the_front_by_full_trainings_stands_where_there_is_one(study):
    assert "by full trainings" not in html.page(study)
    text = with_confirmed(study, CONFIRMED)
    numbers = "near the front *knee *best 4 0.840 ± 0.012 0.812 0.031 5.00x 4.20M 2"
    card = "knee the front's bend 5.0× faster accuracy 0.840 ± 0.012"  # it is not on the front of the short ones
    for part in [numbers, card, "not trained", "baseline no-kd (breaks latency_relative)", "ranks these students poorly"]:
        assert part in text, part
    students = [{**CONFIRMED["students"][0], "role": EVIL, "trial": EVIL}]
    evil = {**CONFIRMED, "steps": EVIL, "sentences": [EVIL], "students": students, "picks": {}}
    assert with_confirmed(study, evil).count(EVIL) == 4


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_without_network_draws_the_front(study):
    path = html.write(study)
    command = [BROWSER, "--headless=new", *OFFLINE, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={study.path / 'profile'}"]
    dump = subprocess.run(
        [*command, "--virtual-time-budget=15000", "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert dump.count('class="main-svg"') >= 2
    points = len(re.findall(r'<path class="point"', dump))
    assert points >= len(front.trained(study.records)) + 1
    assert "latency relative to the teacher (log)" in dump
