"""`ehrctx`: one verb per stage. Parses, calls, prints; heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

import typer

from ehrctx.cli.verbs import app
from ehrctx.errors import InputError

# isort: off
# in the order in which `ehrctx --help` lists the verbs
from ehrctx.cli import events, imports, timelines, tasks, models, probes, robustness, report, controls  # noqa: F401
# isort: on


def shield_negative_ids(words: Sequence[str]) -> list[str]:
    """The words of a command with negative numbers that are arguments behind a `--`, as no option is a number.

    A number after an option is that option's value and stays, and so does everything where a `--` is there already.
    """
    if "--" in words:
        return list(words)
    takes_value = [False, *(word.startswith("--") and "=" not in word for word in words)]
    is_argument = [re.fullmatch(r"-\d+", word) and not taken for word, taken in zip(words, takes_value, strict=False)]
    numbers = [word for word, moves in zip(words, is_argument, strict=True) if moves]
    others = [word for word, moves in zip(words, is_argument, strict=True) if not moves]
    return [*others, "--", *numbers] if numbers else others


def main() -> None:
    """The console command: bad input is one sentence and exit code 2."""
    try:
        app(shield_negative_ids(sys.argv[1:]))
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
