"""Verbs on results: report, track."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Out, TimelinesFolder, app


@app.command()
def report(
    tables: Annotated[Path, typer.Option(help="folder that `ehrctx score` and `ehrctx robustness` filled")],
    timelines: TimelinesFolder,
    summary: Annotated[Path, typer.Option(help="the file that `ehrctx check --out` wrote")],
    study: Annotated[str, typer.Option(help="the study as YAML text, for the page's last section")],
    out: Out,
) -> None:
    """Write the self-contained HTML page."""
    from ehrctx.configuration import settings as parse
    from ehrctx.report.page import write_report
    from ehrctx.study import Study

    write_report(tables, timelines, summary, parse(Study, study, "--study").model_dump(mode="json"), out)
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
