"""`ehrctx`: one verb per stage. Parses, calls, prints; heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import sys

import typer

from ehrctx.cli.verbs import app
from ehrctx.errors import InputError

# isort: off
# in the order in which `ehrctx --help` lists the verbs
from ehrctx.cli import events, imports, timelines, tasks, models, probes, robustness, report, controls  # noqa: F401
# isort: on


def main() -> None:
    """The console command: bad input is one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
