"""One trial of search_synetune.py, in a process of its own as LocalBackend starts it; its values are its arguments."""

import argparse
import math
import os
from pathlib import Path

import space
from contender import Inputs
from search_synetune import RUNGS
from syne_tune import Reporter

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, options in space.CHOICES.items():
        parser.add_argument(f"--{name}", type=type(options[0]))
    for name in space.RANGES:
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--inputs")
    parser.add_argument("--notes")
    drawn = vars(parser.parse_known_args()[0])
    inputs, notes, reporter = Inputs.read(drawn.pop("inputs")), drawn.pop("notes"), Reporter()

    def report(rung: int, accuracy: float, latency: float) -> None:
        """To the benchmark, and to the tuner, which may end this process for it."""
        space.note(notes, os.getpid(), accuracy, latency)
        reporter(rung=rung, error=1 - accuracy, log_latency=math.log(latency))

    Path(notes).parent.mkdir(parents=True, exist_ok=True)
    space.trial("strong", drawn, space.teacher_of(inputs), inputs, report, RUNGS)
