"""Verbs on results: report, track."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Out, TimelinesFolder, app, check_inputs, read_study


@app.command()
def report(
    tables: Annotated[Path, typer.Option(help="folder that `ehrctx score` and `ehrctx robustness` filled")],
    timelines: TimelinesFolder,
    summary: Annotated[Path, typer.Option(help="the file that `ehrctx check --out` wrote")],
    study: Annotated[
        str, typer.Option(help="the study, a file or YAML text: the tables must have been made as it says")
    ],
    out: Out,
) -> None:
    """Write the self-contained HTML page."""
    from ehrctx.provenance import ROBUSTNESS, SCORES
    from ehrctx.report.page import require_tables, write_report

    whole = read_study(study)
    assert whole is not None
    require_tables(tables)
    check_inputs(whole, tables / SCORES, tables / ROBUSTNESS, timelines, summary)
    write_report(tables, timelines, summary, whole.model_dump(mode="json"), out)
    typer.echo(f"report: {out}")


@app.command()
def track(
    store: Annotated[Path, typer.Option(help="MLflow's SQLite file")],
    experiment: Annotated[str, typer.Option(help="MLflow's experiment")],
) -> None:
    """Create the MLflow store and an experiment where they are missing, before jobs run in parallel."""
    from ehrctx.report.tracking import initialise

    initialise(store, experiment)
    typer.echo(f"dashboard: mlflow server --backend-store-uri sqlite:///{store} --host 127.0.0.1")
