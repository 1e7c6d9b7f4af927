"""The one exception that means "the user can fix this": printed as a sentence, exit code 2."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class InputError(Exception):
    """What is wrong, where (file, column, row), and how to fix it. Never names a subject or a subject's value."""


def refuse_repeated(names: Sequence[str], what: str) -> None:
    """Raises InputError if a name is there twice: what it stands for would be counted twice."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{what} of {name!r} are given twice. Give them once.")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a mistyped name: the nearest known one, else all of them."""
    choices = sorted(known)
    close = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(choices)}."
