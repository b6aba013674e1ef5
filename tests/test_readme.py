"""Every command of the README is run as it is written, on the smoke study in place of the one that a reader would use."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdsearch import check, search_space, space_file
from kdsearch.candidate import Architecture
from kdsearch.distillation.composition import BALANCES, SCALES, SCHEDULES
from kdsearch.distillation.knowledge import KNOWLEDGE, Shapes
from kdsearch.distillation.matching import MATCHINGS
from kdsearch.distillation.mistakes import recipe_mistakes
from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
LINES = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = [line for line in LINES if line.startswith("kdsearch ")]
INSTALLS = [line for line in LINES if line.startswith("pip install")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shipped studies and spaces, in which the quickstart is as short as the smoke study."""
    place = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "search_spaces", place / "search_spaces")
    (place / "studies").mkdir()
    smoke = (ROOT / "studies" / "smoke.yaml").read_text(encoding="utf-8").replace("name: smoke", "name: quickstart")
    short = smoke.replace("trials: 12, startup_trials: 4", "trials: 8, startup_trials: 1")
    (place / "studies" / "quickstart.yaml").write_text(short, encoding="utf-8")
    faster = short.replace("name: quickstart", "name: faster").replace("latency_relative: 0.7", "latency_relative: 0.5")
    (place / "studies" / "faster.yaml").write_text(faster, encoding="utf-8")
    done = run(place, "kdsearch run studies/quickstart.yaml")
    assert done.returncode == 0, done.stderr
    assert "Pareto front" in done.stdout
    return place


def run(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", "from kdsearch.cli import main; main()", *command.split()[1:]]
    return subprocess.run(program, cwd=place, capture_output=True, text=True, timeout=300, check=False)


def test_the_readme_has_its_commands() -> None:
    assert len(COMMANDS) >= 8
    assert any("[quickstart]" in line and "kdsearch run studies/quickstart.yaml" in line for line in INSTALLS)
    assert any("[test]" in line and line.endswith("&& pytest") for line in INSTALLS)
    commands = {"run", "check", "front", "confirm", "train", "guideline", "report", "rerun", "dashboard"}
    assert {line.split()[1] for line in COMMANDS} == commands


def test_the_readme_names_every_knowledge_type_matching_schedule_and_balance() -> None:
    rows = {
        row.split("|")[1].strip(): set(re.findall(r"`(\w+)`", row.split("|")[2])) for row in re.findall(r"^\|.*\|$", README, re.MULTILINE)
    }
    assert rows["a knowledge type"] == set(KNOWLEDGE)
    assert rows["`matching` of a term"] == set(MATCHINGS)
    assert rows["`schedule` of a term, `hard_schedule`"] == set(SCHEDULES)
    assert rows["`balance`"] == set(BALANCES)
    assert rows["`scale`"] == set(SCALES)
    shipped = {path.name for path in (ROOT / "search_spaces").glob("*.yaml")}
    assert shipped <= set(re.findall(r"\[(\w+\.yaml)\]", README))


def test_the_readme_s_recipe_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "temperature_end" in block]
    shape = Architecture(4, 12, 16, 4)
    (tmp_path / "space.yaml").write_text("architecture: {layers: 4, heads: 12, head_size: 16, ffn_ratio: 4}\n" + block, encoding="utf-8")
    recipes = [candidate.distillation for candidate in search_space.each_branch(space_file.load(tmp_path / "space.yaml"))]
    assert [term.knowledge for term in recipes[0].terms] == ["kd", "cos", "hidden_mse"]
    teacher = Architecture(6, 12, 32, 4)
    assert [message for recipe in recipes for message in recipe_mistakes(recipe, Shapes(shape, teacher, 2))] == []


@pytest.mark.parametrize("command", [line for line in COMMANDS if "dashboard" not in line])
def test_a_command_of_the_readme_works_as_written(workplace: Path, command: str) -> None:
    done = run(workplace, command)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()


def test_the_study_folder_holds_what_the_readme_promises(workplace: Path) -> None:
    folder = workplace / "studies" / "quickstart"
    for name in ("study.db", "trials.jsonl", "front.json", "report.html", "guideline.md", "guideline.json"):
        assert (folder / name).stat().st_size > 0
    front = json.loads((folder / "front.json").read_text())
    wanted = {"trial", "state", "accuracy", "accuracy_se", "latency_ms", "latency_relative", "parameters", "steps", "seconds", "divergence"}
    for row in [*front["front"], *map(json.loads, (folder / "trials.jsonl").read_text().splitlines())]:
        assert wanted | {"candidate", "seed", "reason"} <= set(row)
    assert [row["baseline"] for row in front["baselines"]] == ["no-kd", "distilbert", "tinybert"]


def test_a_study_started_from_another_holds_its_trials(workplace: Path) -> None:
    command = next(line for line in COMMANDS if "--from" in line)
    done = run(workplace, command)
    first = [json.loads(line) for line in (workplace / "studies" / "quickstart" / "trials.jsonl").read_text().splitlines()]
    found = [json.loads(line) for line in (workplace / "studies" / "faster" / "trials.jsonl").read_text().splitlines()]
    imported = [row for row in found if row["imported_from"]]
    assert f"from quickstart: {len(imported)} trial" in done.stdout
    assert {row["accuracy"] for row in imported} <= {row["accuracy"] for row in first}
    assert [row["baseline"] for row in imported if row["baseline"]] == ["no-kd", "distilbert", "tinybert"]
    assert (workplace / "studies" / "faster" / "earlier.json").is_file()


def test_run_again_trains_nothing(workplace: Path) -> None:
    before = (workplace / "studies" / "quickstart" / "trials.jsonl").read_text()
    assert run(workplace, "kdsearch run studies/quickstart.yaml").returncode == 0
    assert (workplace / "studies" / "quickstart" / "trials.jsonl").read_text() == before


def test_front_as_json(workplace: Path) -> None:
    assert json.loads(run(workplace, "kdsearch front studies/quickstart --json").stdout)["study"] == "quickstart"


def test_an_export_loads_without_kdsearch_and_gives_its_recorded_accuracy(workplace: Path) -> None:
    assert run(workplace, "kdsearch train studies/quickstart --pick fastest --steps 3").returncode == 0
    exports = sorted((workplace / "studies" / "quickstart" / "exports").glob("*/result.json"))
    assert exports
    for result in exports:
        recorded = json.loads(result.read_text())
        assert recorded["round_trip_difference"] <= 1e-4
        assert {"test_accuracy", "test_accuracy_se", "teacher_test_accuracy", "validation_accuracy"} <= set(recorded)
        program = (
            "import sys\nfrom transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
            f"place = {str(result.parent / 'model')!r}\n"
            "model = AutoModelForSequenceClassification.from_pretrained(place)\n"
            "tokens = AutoTokenizer.from_pretrained(place)('a gripping film', return_tensors='pt')\n"
            "print(model(**tokens).logits.shape[1], model.num_parameters(), 'kdsearch' in sys.modules)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["2", str(recorded["parameters"]), "False"]
        report = (workplace / "studies" / "quickstart" / "report.html").read_text(encoding="utf-8")
        assert f"{recorded['test_accuracy']:.3f} ± {recorded['test_accuracy_se']:.3f}" in report


def test_the_readme_s_python_loads_an_export(workplace: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert run(workplace, "kdsearch train studies/quickstart --pick 1 --steps 2").returncode == 0
    program = [sys.executable, "-c", f"{block}\nprint(student.config.num_labels)"]
    done = subprocess.run(program, cwd=workplace, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "2", done.stderr


def test_the_readme_s_own_study_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "my-teacher" in block]
    (tmp_path / "studies").mkdir()
    shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")
    shape = {
        "max_position_embeddings": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "hidden_size": 384,
        "intermediate_size": 1536,
    }
    tokens = [*tiny.SPELLED, *(f"seldom{i}" for i in range(16_000))]  # the space has a vocabulary of 16,000
    folder = tiny.save(tmp_path / "studies" / "my-teacher", tokens=tokens)
    tiny.teacher(vocab_size=len(tokens), **shape).save_pretrained(folder)
    texts, labels = tiny.texts(100)
    tiny.write_csv(tmp_path / "studies" / "reviews.csv", {"text": texts, "label": labels})
    (tmp_path / "studies" / "mine.yaml").write_text(block, encoding="utf-8")
    study = check.open_files(tmp_path / "studies" / "mine.yaml")
    assert study.spec.teacher.fine_tune is None
    assert study.folder == tmp_path / "studies" / "mine"


def test_the_readme_s_packaged_study_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if "packaged.yaml" in block]
    (tmp_path / "studies").mkdir()
    shutil.copytree(ROOT / "search_spaces", tmp_path / "search_spaces")
    (tmp_path / "studies" / "packaged.yaml").write_text(block, encoding="utf-8")
    study = check.open_files(tmp_path / "studies" / "packaged.yaml")
    assert study.spec.teacher.model.startswith("package://")
    assert study.spec.task.data.startswith("package://")


def test_ctrl_c_keeps_what_was_found_and_the_same_command_goes_on(workplace: Path, tmp_path: Path) -> None:
    command = f"kdsearch run studies/quickstart.yaml --trials 2 --workers 1 --out {tmp_path / 'stopped'}"
    program = [sys.executable, "-c", "from kdsearch.cli import main; main()", *command.split()[1:]]
    process = subprocess.Popen(program, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert any(line.startswith("trial   0") for line in process.stdout)  # reads up to this line
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "the same command goes on from here" in errors
    assert "trials.jsonl" in said
    first = (tmp_path / "stopped" / "trials.jsonl").read_text()
    assert len(first.splitlines()) == 1
    done = run(workplace, command)
    assert done.returncode == 0, done.stderr
    assert "The budget is used up: 2 of 2 trials. To go on, raise --trials." in done.stdout
    both = (tmp_path / "stopped" / "trials.jsonl").read_text()
    assert both.startswith(first)
    assert len(both.splitlines()) == 2


@pytest.fixture
def served(workplace: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from kdsearch.cli import main; main()", "dashboard", "studies/quickstart.yaml", "--port", str(port)]
    process = subprocess.Popen(program, cwd=workplace, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(timeout=20)
    with socket.socket() as probe:  # the server does not outlive the command
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_ctrl_c_ends_the_dashboard_quietly(workplace: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = [sys.executable, "-c", "from kdsearch.cli import main; main()", "dashboard", "studies/quickstart", "--port", str(port)]
    process = subprocess.Popen(program, cwd=workplace, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    assert "Ctrl-C stops it" in process.stdout.readline()
    for _ in range(120):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Finished trials are kept" not in errors  # what a search says


def test_the_dashboard_shows_the_study(served: str) -> None:
    for _ in range(120):
        try:
            with urllib.request.urlopen(f"{served}/api/studies", timeout=5) as answer:
                studies = json.load(answer)
            break
        except OSError:
            time.sleep(0.5)
    assert [study["study_name"] for study in studies["study_summaries"]] == ["quickstart"]
    with urllib.request.urlopen(f"{served}/api/studies/{studies['study_summaries'][0]['study_id']}?after=0", timeout=5) as answer:
        study = json.load(answer)
    assert study["objective_names"] == ["accuracy", "log latency (relative to the teacher)"]
    assert all(trial["note"]["body"] for trial in study["trials"])


def mistakes(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error:")]


def test_all_mistakes_of_a_file_are_named_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "not_a_model").mkdir()
    (tmp_path / "data.csv").write_text("txt,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    (tmp_path / "bad.yaml").write_text(
        "name: bad\nteacher: {model: ./not_a_model}\ntask: {data: data.csv}\nspace: nowhere.yaml\n"
        "limits: {latency_relative: -1}\nserach: {minutes: 1}\nproxy: {steps: many}\n"
    )
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, "kdsearch run bad.yaml --from nowhere")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    files = ("nowhere: does not exist", "nowhere.yaml", "lacks config.json", "unknown column 'text'")
    for words in (*files, "did you mean 'search'", "latency_relative", "proxy.steps"):
        assert words in done.stderr, done.stderr
    assert len(mistakes(done.stderr)) == 7
    assert sorted(tmp_path.rglob("*")) == before


def test_a_limit_that_no_student_can_meet_is_refused_before_anything_is_written(workplace: Path, tmp_path: Path) -> None:
    text = (workplace / "studies" / "quickstart.yaml").read_text().replace("latency_relative: 0.7", "latency_ms: 0.0001")
    (workplace / "studies" / "impossible.yaml").write_text(text)
    done = run(workplace, f"kdsearch run studies/impossible.yaml --out {tmp_path / 'out'}")
    assert done.returncode == 2
    assert "the smallest student of the space takes" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_changed_study_is_not_mixed_with_the_old_one(workplace: Path) -> None:
    folder = workplace / "studies"
    text = (folder / "quickstart.yaml").read_text().replace("steps: 5,", "steps: 6,")
    (folder / "changed.yaml").write_text(text)
    done = run(workplace, f"kdsearch run studies/changed.yaml --out {folder / 'quickstart'}")
    assert done.returncode == 2
    assert "proxy differs" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("kdsearch front nowhere", "nowhere"),
        ("kdsearch train studies/quickstart --pick fastets", "--pick"),
        ("kdsearch train studies/quickstart --pick 999", "trial 999"),
        ("kdsearch rerun studies/quickstart 999", "trial 999"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(workplace: Path, command: str, words: str) -> None:
    done = run(workplace, command)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert words in done.stderr
