"""Verbs on other formats: import omop, ehrshot, femr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Out, app, print_facts

imports = typer.Typer(no_args_is_help=True, help="Turn a data set of another format into MEDS.")
app.add_typer(imports, name="import")

Concepts = Annotated[
    Path | None, typer.Option(help="folder of an OMOP vocabulary from Athena, for descriptions and parents of codes")
]


@imports.command()
def ehrshot(
    source: Annotated[Path, typer.Argument(help="folder into which EHRSHOT's CSV release was unpacked")],
    out: Out,
    concepts: Concepts = None,
) -> None:
    """Write EHRSHOT as a MEDS data set, with its own splits, labels and few-shot draws."""
    from ehrctx.tasks.ehrshot import import_ehrshot

    print_facts(import_ehrshot(source, out, concepts))


@imports.command()
def femr(
    source: Annotated[Path, typer.Argument(help="folder of a meds_reader database, or an extract of femr 0.1")],
    out: Out,
    environment: Annotated[
        Path | None,
        typer.Option(
            help="where what reads an extract of femr 0.1 is installed; results/environments/femr01 if left out"
        ),
    ] = None,
) -> None:
    """Write what femr keeps as a MEDS data set: a database of femr 0.2, or an extract of femr 0.1."""
    from ehrctx.events.femr import import_femr
    from ehrctx.events.femr01 import ENVIRONMENT

    print_facts(import_femr(source, out, environment or ENVIRONMENT))
