"""The flow has one direction: a module imports only what stands above it in the README's map."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = re.findall(r"^\| `kdsearch/([a-z_]+)(?:\.py|/)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
FILES = [path for path in sorted((ROOT / "kdsearch").rglob("*.py")) if path != ROOT / "kdsearch" / "__init__.py"]


def room(path: Path) -> str:
    return path.relative_to(ROOT / "kdsearch").parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("kdsearch.")}


def test_the_map_names_every_room_once() -> None:
    assert len(ORDER) > 20
    assert sorted(ORDER) == sorted({room(path) for path in FILES})


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_go_upwards(path: Path) -> None:
    own = ORDER.index(room(path))
    below = {name for name in imported_rooms(path) if ORDER.index(name) > own}
    assert not below


@pytest.mark.parametrize(
    "module",
    [
        "kdsearch.records",
        "kdsearch.space_file",
        "kdsearch.search_space",
        "kdsearch.study_file",
        "kdsearch.guideline",
        "kdsearch.report.html",
    ],
)
def test_reports_and_files_open_without_torch_or_optuna(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('torch', 'optuna', 'transformers') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_only_the_search_its_samplers_its_store_and_the_dashboard_know_optuna() -> None:
    users = [path for path in FILES if re.search(r"^\s*(import|from) optuna", path.read_text(encoding="utf-8"), re.MULTILINE)]
    assert [path.relative_to(ROOT).as_posix() for path in users] == [
        "kdsearch/report/dashboard.py",
        "kdsearch/samplers.py",
        "kdsearch/search.py",
        "kdsearch/study_store.py",
        "kdsearch/together.py",
        "kdsearch/view.py",
    ]
