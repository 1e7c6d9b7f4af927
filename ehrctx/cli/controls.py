"""Verb on controls: controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import app


@app.command()
def controls(
    design: Annotated[str, typer.Option(help="the controls' file as YAML text")],
    results: Annotated[Path, typer.Option(help="where the arms' results lie, as <name>_<arm>")],
    out: Annotated[Path, typer.Option(help="folder for the page and its tables")],
) -> None:
    """Write what the workflow found in cohorts of which the truth is known, against that truth, and the page."""
    from ehrctx.configuration import settings as parse
    from ehrctx.controls.arms import ARMS, Controls, compared
    from ehrctx.controls.tables import record_controls, write_controls
    from ehrctx.provenance import require_current
    from ehrctx.report.controls import write_page

    asked = parse(Controls, design, "--design")
    folders = {arm: results / f"{asked.name}_{arm}" for arm in ARMS}
    for arm, study in asked.studies().items():
        require_current(study, compared(arm, study, results / study.name), results)
    tables = write_controls(asked, folders, out)
    write_page(asked, tables, out / "index.html")
    record_controls(asked, folders, out)
    judged = tables["controls"].drop_nulls("holds")
    typer.echo(f"controls: {judged['holds'].sum()} of {judged.height} statements hold; {out}/index.html")
