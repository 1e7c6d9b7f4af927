"""Verbs on other formats: import omop, ehrshot, femr."""

from __future__ import annotations

import typer

from ehrctx.cli.verbs import app

imports = typer.Typer(no_args_is_help=True, help="Turn a data set of another format into MEDS.")
app.add_typer(imports, name="import")
