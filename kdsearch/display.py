"""What a person sees while a search runs: one line per trial, and below it where it stands and how long it may take."""

import time
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape

from kdsearch import budget
from kdsearch.budget import Work
from kdsearch.candidate import Candidate, from_dict
from kdsearch.records import COMPLETE, FAILED, STOPPED, Record, own
from kdsearch.study_file import Search

QUIET_SECONDS = 10.0


class Display:
    """A live line on a terminal; elsewhere (a log file) a plain line every ten seconds."""

    def __init__(self, console: Console, plan: Search, known: Sequence[Record] = (), seconds: float = 0.0) -> None:
        self.console, self.plan, self.known, self.seconds = console, plan, list(known), seconds
        self.running: list[int] = []
        self.began: float | None = None
        self.printed = time.monotonic()
        self.stage = ""
        self.live = console.status("") if console.is_terminal else None
        self.work, self.keep, self.kept = Work(), budget.nothing_kept, 0.0

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def reckons(self, work: Work, keep: Callable[[Sequence[Record]], float]) -> None:
        """How FLOPs are counted, and which seconds are kept for the finalists: known when the teacher is."""
        self.work, self.keep, self.kept = work, keep, keep(self.known)

    def progress(self, stage: str, done: int, total: int) -> None:
        """One step of a stage is done; the display decides whether to say so."""
        now = time.monotonic()
        share = f" {done}/{total}" if total > 1 else ""
        text = " · ".join(part for part in (self.trials(), f"{stage}{share}", self.standing()) if part)
        if self.live:
            self.live.update(escape(text))
        elif (stage != self.stage and not self.running) or now - self.printed > QUIET_SECONDS:
            self.printed = now
            self.console.print(f"  {escape(text)}", highlight=False)
        self.stage = stage

    def proposed(self, number: int, candidate: Candidate, baseline: str | None) -> None:
        """A trial starts, or waits for a free worker."""
        self.began = self.began or time.monotonic()
        self.running.append(number)
        self.progress(baseline or in_words(candidate), 0, 1)

    def found(self, record: Record, known: Sequence[Record]) -> None:
        """A trial is over."""
        self.known, self.kept = list(known), self.keep(known)
        self.running.remove(record.trial)
        self.console.print(escape(line(record)), highlight=False)

    def trials(self) -> str:
        """Which trials run, and about how many there will be."""
        if not self.running:
            return ""
        numbers = ", ".join(str(number) for number in self.running)
        return f"trial{'s' if len(self.running) > 1 else ''} {numbers}{f' of about {self.expected()}' if self.known else ''}"

    def standing(self) -> str:
        """The best student so far and the time left."""
        done = [record for record in self.known if record.feasible]
        parts = []
        if done:
            best = max(done, key=lambda record: record.measurement.accuracy or 0.0).measurement
            parts.append(f"best so far {best.accuracy:.3f} at {1 / (best.latency_relative or 1):.1f}x")
        if self.began:
            left = max(0.0, self.plan.minutes * 60 - self.searched())
            parts.append(
                f"{left / 60:.1f} min left" + (f", {min(left, self.kept) / 60:.1f} of them for the finalists" if self.kept else "")
            )
        if self.began and self.plan.flops is not None:
            parts.append(f"{max(0.0, 1 - budget.flops(self.known, self.work) / self.plan.flops):.0%} of the FLOPs left")
        return " · ".join(parts)

    def searched(self) -> float:
        """Seconds of the budget that are used."""
        return self.seconds + (time.monotonic() - self.began if self.began else 0.0)

    def expected(self) -> int:
        """About how many trials there will be, at the pace so far."""
        done = len(own(self.known))
        used = max(self.searched(), 1.0) / (self.plan.minutes * 60 - self.kept)
        if self.plan.flops is not None and self.plan.flops > self.work.teacher:
            used = max(used, budget.trained_flops(self.known, self.work) / (self.plan.flops - self.work.teacher))
        guess = int(done / used)
        guess = max(guess, done + len(self.running))
        return len(self.known) - done + (min(guess, self.plan.trials) if self.plan.trials else guess)


def line(record: Record) -> str:
    """A trial in one line."""
    found, candidate = record.measurement, from_dict(record.candidate)
    head = f"trial {record.trial:>3}  {f'({record.imported_from})  ' if record.imported_from else ''}"
    words = f"{in_words(candidate)}{f'  [baseline {record.baseline}]' if record.baseline else ''}"
    if record.duplicate_of is not None:
        return f"{head}the same student as trial {record.duplicate_of}: not trained again"
    if found.state == FAILED:
        return f"{head}failed: {found.reason}  ({words})"
    if found.state == STOPPED:
        return f"{head}{found.reason}  ({words})  {found.seconds:.0f} s"
    if found.state != COMPLETE:
        return f"{head}refused: {found.reason}  ({words})"
    speed = f"{1 / (found.latency_relative or 1):.2f}x faster" if found.latency_relative else ""
    over = f"  [breaks {record.breaks}]" if record.breaks else ""
    return (
        f"{head}accuracy {found.accuracy:.3f} ± {found.accuracy_se:.3f}  {speed}  {(found.parameters or 0) / 1e6:.1f}M  "
        f"{words}{over}  {found.seconds:.0f} s"
    )


def in_words(candidate: Candidate) -> str:
    """A candidate in a few words: layers x width (heads), FFN, vocabulary where it is reduced, start, recipe."""
    shape = candidate.architecture
    words = f", {shape.vocabulary} tokens" if shape.vocabulary else ""
    return (
        f"{shape.layers} x {shape.width} ({shape.heads} heads, ffn {shape.ffn}{words}), {candidate.initialization.layers} layers, "
        f"{candidate.distillation.name}, lr {candidate.training.learning_rate:.1g}"
    )
