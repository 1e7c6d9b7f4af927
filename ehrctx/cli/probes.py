"""Verbs on probes: groups, embed, probe, score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.datasets import Profile, profile_for
from ehrctx.cli.verbs import (
    Data,
    LabelsFolder,
    Out,
    Settings,
    SplitsFile,
    Store,
    StudyFile,
    TimelinesFolder,
    app,
    check_inputs,
    print_facts,
    privacy_of,
    read_study,
)
from ehrctx.errors import InputError


@app.command()
def groups(
    data: Data,
    labels: LabelsFolder,
    out: Out,
    profile: Profile = None,
    study: StudyFile = None,
) -> None:
    """Write to which groups (age, sex, what the profile names) each subject belongs at each prediction time."""
    from ehrctx.probe.groups import write_groups

    whole = read_study(study)
    check_inputs(whole, labels)
    print_facts(write_groups(data, profile_for(data, profile), labels, out), privacy_of(whole))


@app.command()
def embed(
    model: Annotated[Path, typer.Option(help="folder that `ehrctx pretrain` wrote")],
    timelines: TimelinesFolder,
    labels: LabelsFolder,
    out: Out,
    context: Annotated[int | None, typer.Option(help="context length; the model's own if left out", min=8)] = None,
    batch_tokens: Annotated[int, typer.Option(help="tokens of one forward pass, padding included", min=1)] = 8_192,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
    settings: Settings = None,
    study: StudyFile = None,
) -> None:
    """Write one representation for every distinct (subject, prediction time). Settings: the study's `embedding`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.probe.embed import embed as run
    from ehrctx.study import Embedding

    whole = read_study(study)
    check_inputs(whole, model, timelines, labels)
    facts = run(model, timelines, labels, out, context, batch_tokens, threads, parse(Embedding, settings))
    print_facts(facts, privacy_of(whole))


@app.command()
def probe(
    labels: LabelsFolder,
    out: Out,
    embeddings: Annotated[Path | None, typer.Option(help="folder that `ehrctx embed` wrote")] = None,
    timelines: Annotated[Path | None, typer.Option(help="for the count baseline: folder of `ehrctx tokenize`")] = None,
    settings: Settings = None,
    study: StudyFile = None,
) -> None:
    """Fit the linear probe on embeddings, or on counts (--timelines), and predict. Settings: the study's `probe`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.probe.predict import probe_counts, probe_embeddings
    from ehrctx.study import Probe

    chosen = parse(Probe, settings)
    if (embeddings is None) == (timelines is None):
        raise InputError("give either --embeddings (a model) or --timelines (the count baseline).")
    whole = read_study(study)
    check_inputs(whole, labels, *(folder for folder in (embeddings, timelines) if folder is not None))
    if timelines is not None:
        print_facts(probe_counts(timelines, labels, chosen, out), privacy_of(whole))
    elif embeddings is not None:
        print_facts(probe_embeddings(embeddings, labels, chosen, out), privacy_of(whole))


@app.command()
def score(
    predictions: Annotated[list[Path], typer.Option(help="folders that `ehrctx probe` wrote; repeat for several")],
    model: Annotated[list[Path], typer.Option(help="folders that `ehrctx pretrain` wrote; repeat for several")],
    labels: LabelsFolder,
    groups: Annotated[Path, typer.Option(help="folder that `ehrctx groups` wrote")],
    splits: SplitsFile,
    out: Annotated[Path, typer.Option(help="folder for the tables: scores.csv, differences.csv …")],
    settings: Settings = None,
    privacy: Annotated[str | None, typer.Option(help="the study's `privacy` as YAML text")] = None,
    tracking: Store = None,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment")] = "ehrctx",
    study: StudyFile = None,
) -> None:
    """Score all models on held-out subjects, with paired intervals. Settings: the study's `statistics`."""
    import polars as pl

    from ehrctx.configuration import settings as parse
    from ehrctx.probe.tables import write_scores
    from ehrctx.study import Privacy, Statistics
    from ehrctx.tasks.definition import MACRO, MACRO_MANY_POSITIVES

    chosen = parse(Statistics, settings), parse(Privacy, privacy, "--privacy")
    check_inputs(read_study(study), *predictions, *model, labels, groups, splits)
    table = write_scores(predictions, model, labels, groups, splits, *chosen, out)
    if tracking is not None:
        from ehrctx.report.tracking import log_scores

        log_scores(tracking, experiment, table)
    tasks = table.filter(~pl.col("task").is_in([MACRO, MACRO_MANY_POSITIVES]))["task"].n_unique()
    typer.echo(
        f"{len(model)} models and the heads on counts; tasks with scores that may be shown: {tasks}; {out}/scores.csv"
    )
