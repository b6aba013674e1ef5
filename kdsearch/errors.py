"""What the user can mend."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any


class UserError(Exception):
    """Mistakes of the user's input, all of them at once; each message states the rule, the value and the fix. Exit status 2."""

    def __init__(self, messages: str | Sequence[str]) -> None:
        self.messages = [messages] if isinstance(messages, str) else list(messages)
        super().__init__("\n".join(self.messages))


def all_of(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls give, in their order.

    Raises:
        UserError: the mistakes that any of them raised, together.
    """
    given, messages = [], []
    for call in calls:
        try:
            given.append(call())
        except UserError as error:
            messages += error.messages
    if messages:
        raise UserError(messages)
    return given


def unknown(kind: str, value: object, known: Sequence[str]) -> str:
    """The message for a name that does not exist: the nearest one that does, and all of them."""
    near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown {kind} '{value}'; {hint}known: {', '.join(known)}"
