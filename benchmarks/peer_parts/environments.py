"""A virtual environment for each peer, made once and kept: the peer's release, with torch and transformers as constraints.txt pins them.

Pinned, since an open range would bring another torch than the one that is compared with.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = ("torch", "transformers")
# name: packages beside the base, packages without what they require (torchdistill requires torchvision for image models only)
PEERS: dict[str, tuple[list[str], list[str]]] = {
    "hf": (["accelerate", "optuna"], []),
    "textbrewer": (["textbrewer==0.2.1.post1"], []),
    "torchdistill": (["pillow", "scipy"], ["torchdistill==1.1.5"]),
    "syne-tune": (["accelerate", "syne-tune==0.16.0"], []),
}


def python_of(work: Path, name: str) -> str:
    """The interpreter of a contender's environment; kdsearch runs in this one."""
    return sys.executable if name == "kdsearch" else str(work / "environments" / name / "bin" / "python")


def make(work: Path, names: Iterable[str], report: Callable[[str], None]) -> None:
    """Create the environments that are not there yet.

    Raises:
        RuntimeError: pip failed; the message has its last lines.
    """
    for name in names:
        folder, (packages, bare) = work / "environments" / name, PEERS[name]
        pins = [*BASE, *packages]
        done = folder / "made.json"
        if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == [pins, bare]:
            continue
        report(f"making the environment of {name}: {' '.join([*packages, *bare])} (once)")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        install = [python_of(work, name), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
        _run([*install, *pins])
        if bare:
            _run([*install, "--no-deps", *bare])
        done.write_text(json.dumps([pins, bare]), encoding="utf-8")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
