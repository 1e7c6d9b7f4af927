"""Verbs on robustness: properties, perplexity, robustness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import (
    LabelsFolder,
    Out,
    Settings,
    StudyFile,
    TimelinesFolder,
    app,
    check_inputs,
    print_facts,
    privacy_of,
    read_study,
)


@app.command()
def properties(timelines: TimelinesFolder, labels: LabelsFolder, out: Out, study: StudyFile = None) -> None:
    """Write repetition, irregularity and length of the history at every prediction time."""
    from ehrctx.robustness.properties import write_properties

    whole = read_study(study)
    check_inputs(whole, timelines, labels)
    print_facts(write_properties(timelines, labels, out), privacy_of(whole))


@app.command()
def perplexity(
    model: Annotated[Path, typer.Option(help="folder that `ehrctx pretrain` wrote")],
    timelines: TimelinesFolder,
    out: Out,
    settings: Settings = None,
    batch_tokens: Annotated[int, typer.Option(help="tokens of one forward pass, padding included", min=1)] = 8_192,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    study: StudyFile = None,
) -> None:
    """Write the loss of every token of held-out timelines. Settings: the study's `perplexity`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.robustness.token_losses import write_token_losses
    from ehrctx.study import Perplexity

    whole = read_study(study)
    check_inputs(whole, model, timelines)
    facts = write_token_losses(model, timelines, parse(Perplexity, settings), out, batch_tokens, threads)
    print_facts(facts, privacy_of(whole))


@app.command()
def robustness(
    predictions: Annotated[list[Path], typer.Option(help="folders that `ehrctx probe` wrote; repeat for several")],
    properties: Annotated[Path, typer.Option(help="folder that `ehrctx properties` wrote")],
    losses: Annotated[list[Path], typer.Option(help="folders that `ehrctx perplexity` wrote; repeat for several")],
    out: Annotated[Path, typer.Option(help="folder for strata.csv and perplexity.csv")],
    statistics: Annotated[str | None, typer.Option(help="the study's `statistics` as YAML text")] = None,
    perplexity: Annotated[str | None, typer.Option(help="the study's `perplexity` as YAML text")] = None,
    privacy: Annotated[str | None, typer.Option(help="the study's `privacy` as YAML text")] = None,
    study: StudyFile = None,
) -> None:
    """Write Brier scores by quartile of each property, and perplexity by token position, with intervals."""
    from ehrctx.configuration import settings as parse
    from ehrctx.robustness.tables import write_tables
    from ehrctx.study import Perplexity, Privacy, Statistics

    check_inputs(read_study(study), *predictions, properties, *losses)
    tables = write_tables(
        predictions,
        properties,
        losses,
        parse(Statistics, statistics, "--statistics"),
        parse(Perplexity, perplexity, "--perplexity"),
        parse(Privacy, privacy, "--privacy"),
        out,
    )
    typer.echo(", ".join(f"{out}/{name}.csv: {table.height} rows" for name, table in tables.items()))
