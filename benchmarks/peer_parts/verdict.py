"""The bars that kdsearch set itself, and what was found; a bar whose part was not run is not listed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bar:
    """One bar: what is asked, what was found, and whether it is met."""

    part: str
    asked: str
    found: str
    met: bool


def bars(results: dict[str, Any]) -> list[Bar]:
    """All bars of the parts that were run, in their order."""
    makers = {"P1": _loop, "accuracy": _accuracy, "bigger": _bigger, "P2": _first_step, "P3": _searches, "P4": _controller}
    return [bar for part, make in makers.items() if part in results for bar in make(results[part])]


def least(part: str, what: str, value: float, bar: float, unit: str = "x") -> Bar:
    """A bar that is reached from below."""
    return Bar(part, f"{what}: at least {bar:g}{unit}", f"{value:.3g}{unit}", value >= bar)


def most(part: str, what: str, value: float, bar: float, unit: str) -> Bar:
    """A bar that is kept from above."""
    return Bar(part, f"{what}: at most {bar:g} {unit}", f"{value:.3g} {unit}", value <= bar)


def _loop(found: dict[str, Any]) -> list[Bar]:
    rows: list[Bar] = []
    for student, told in found["students"].items():
        smallest = student == next(iter(found["students"]))
        rows.append(least("P1", f"{student} against naive HF", told["ratio"]["naive HF"], 10 if smallest else 8))
        rows.append(least("P1", f"{student} against strong HF", told["ratio"]["strong HF"], 5 if smallest else 1.8))
        share = 50 if int(student.partition("x")[2]) < 256 else 70
        rows.append(least("P1", f"{student}, share of the bf16 peak", 100 * told["share_of_peak"], share, " %"))
    return rows


def _accuracy(found: dict[str, Any]) -> list[Bar]:
    rows = []
    for student, told in found["students"].items():
        apart = {name: told["difference"][name] for name, within in told["within"].items() if within == "neither"}
        worst = max(told["difference"].values(), key=abs)
        words = "; ".join(f"{name} {100 * value:+.1f}" for name, value in apart.items()) or f"largest difference {100 * worst:+.1f} points"
        rows.append(Bar("P1", f"{student}: accuracies agree within a point or 2 standard errors", words, not apart))
    return rows


def _bigger(found: dict[str, Any]) -> list[Bar]:
    return [
        least("bigger", f"{student}, teacher {found['facts']['teacher']}, against naive HF", told["ratio"]["naive HF"], 25)
        for student, told in found["students"].items()
    ]


def _first_step(found: dict[str, Any]) -> list[Bar]:
    return [most("P2", "a trial's start to its first step", found["kdsearch"]["overhead"], 0.2, "s")]


def _searches(found: dict[str, Any]) -> list[Bar]:
    ours = found["contenders"]["kdsearch"]
    peers = {name: told for name, told in found["contenders"].items() if name != "kdsearch"}
    rows = [
        least("P3", f"trials against {name}", ours["trials"][-1] / max(1, peers[name]["trials"][-1]), bar)
        for name, bar in (("Optuna + naive HF", 10), ("Optuna + strong HF", 2))
        if name in peers
    ]
    for place, second in enumerate(found["marks"]):
        best = max(peers, key=lambda name: peers[name]["hypervolume"][place])
        values = f"{ours['hypervolume'][place]:.3f}; {best} {peers[best]['hypervolume'][place]:.3f}"
        ahead = ours["hypervolume"][place] > peers[best]["hypervolume"][place]
        rows.append(Bar("P3", f"hypervolume at {second:g} s ahead of every peer's", values, ahead))
    memory = ours["peak_megabytes"]["pss"] or ours["peak_megabytes"]["rss"]  # PSS where it is told
    return [*rows, most("P5", "memory of kdsearch's search", memory / 1000, 1.5, "GB")]


def _controller(found: dict[str, Any]) -> list[Bar]:
    ours, theirs = found["milliseconds"]["kdsearch"], found["milliseconds"]["syne-tune MO-ASHA"]
    rows = [most("P4", "kdsearch's controller for a trial", ours, 60, "ms")]
    return [*rows, Bar("P4", "ahead of syne-tune", f"{ours:.1f} ms; syne-tune {theirs:.1f} ms", ours < theirs)]
