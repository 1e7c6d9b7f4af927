"""Verbs on events: check, simulate, split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.datasets import tell_files
from ehrctx.cli.verbs import Data, Out, StudyFile, app, print_facts, privacy_of, read_study
from ehrctx.errors import InputError


@app.command()
def check(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="also write the summary as JSON to this file")] = None,
    profile: Annotated[
        str | None, typer.Option(help="check what this profile names, too: one in pipelines/datasets/, or a path")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="check this table of splits instead of the data set's own")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="also list the files that are ignored by rule")] = False,
    study: StudyFile = None,
) -> None:
    """Print what a MEDS data set holds, every rule that it breaks, with file and row, and what is unusual in it.

    What `tokenize` or `label` would refuse is named here first; give them the same profile and table of splits.
    """
    from ehrctx.artifacts import write_provenance
    from ehrctx.configuration import load
    from ehrctx.events.check import check as run
    from ehrctx.events.meds import open_dataset
    from ehrctx.events.profile import DatasetProfile, find_profile

    tell_files(data, verbose)
    dataset, privacy = open_dataset(data), privacy_of(read_study(study))
    chosen = load(DatasetProfile, find_profile(profile)) if profile is not None else None
    warnings: list[str] = []
    summary, violations = run(dataset, chosen, splits, privacy, warnings.append)
    print_facts(summary, privacy)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    for violation in violations:
        typer.echo(f"violation: {violation}", err=True)
    if violations:
        raise InputError(f"{data} breaks {len(violations)} rule(s), listed above. Fix the files and check again.")
    if out is not None:
        checked = {"name": data.name, **summary, "profile": chosen.model_dump() if chosen else None}
        write_provenance(out, checked, {"events": dataset.source()}, [])


@app.command()
def simulate(
    out: Out,
    subjects: Annotated[int, typer.Option(help="how many subjects", min=10)] = 2000,
    preset: Annotated[str, typer.Option(help="a cohort in pipelines/cohorts/, or the path of one")] = "published",
    seed: Annotated[int, typer.Option(help="the same seed gives the same cohort, byte for byte", min=0)] = 0,
    parameters: Annotated[
        str | None, typer.Option(help="what differs from the preset, as YAML text: '{cause: {distance_tokens: 256}}'")
    ] = None,
    workers: Annotated[int, typer.Option(help="processes that simulate side by side", min=1)] = 1,
) -> None:
    """Write a seeded MEDS cohort in which an early episode raises a later risk, and beside it the truth of labels."""
    from ehrctx.configuration import parsed
    from ehrctx.events.simulate.cohort import simulate as run
    from ehrctx.events.simulate.parameters import parameters_of

    changes = parsed(parameters, "--parameters") if parameters else {}
    print_facts(run(parameters_of(preset, changes, "--parameters"), subjects, seed, out, workers), privacy_of(None))


@app.command()
def split(
    data: Data,
    out: Out,
    splits: Annotated[
        str, typer.Option(help="'given', or the study key as YAML text: '{hash: [.7, .15, .15]}'")
    ] = "given",
    study: StudyFile = None,
) -> None:
    """Write subject_splits.parquet: the data set's own splits, checked, or splits from a hash of the subject."""
    from ehrctx.configuration import settings
    from ehrctx.events.meds import open_dataset
    from ehrctx.events.splits import subject_splits, write_splits
    from ehrctx.study import HashSplits

    tell_files(data)
    chosen = None if splits in ("given", '"given"') else settings(HashSplits, splits, "--splits")
    dataset, privacy = open_dataset(data), privacy_of(read_study(study))
    table = subject_splits(dataset, chosen, privacy)
    write_splits(table, dataset, chosen, out)
    print_facts(dict(table["split"].value_counts(sort=True).iter_rows()), privacy)


@app.command()
def marginals(
    data: Annotated[list[Path], typer.Argument(help="folders of MEDS data sets, to be put side by side")],
    out: Annotated[Path, typer.Option(help="folder for marginals.csv, codes.csv and marginals.svg")],
    profile: Annotated[
        list[str],
        typer.Option(help="a profile in pipelines/datasets/, or the path of one; for each data set, in order"),
    ],
    name: Annotated[
        list[str] | None, typer.Option(help="what to call each data set; its folder's name if left out")
    ] = None,
    privacy: Annotated[str | None, typer.Option(help="the study's `privacy` as YAML text")] = None,
) -> None:
    """Put lengths, gaps and the commonest codes of data sets side by side: a simulated one and your own, say."""
    import polars as pl

    from ehrctx.artifacts import new_file, write_table
    from ehrctx.configuration import settings
    from ehrctx.events.marginals import marginals_of
    from ehrctx.report.marginals import marginals_figure
    from ehrctx.study import Privacy

    names = name or [folder.name for folder in data]
    if not len(data) == len(profile) == len(names):
        raise InputError(
            f"{len(data)} data sets have {len(profile)} profiles and {len(names)} names. Give one of each per data set."
        )
    chosen = settings(Privacy, privacy, "--privacy")
    found = [marginals_of(*each, chosen) for each in zip(data, profile, names, strict=True)]
    write_table(pl.concat([one.table for one in found]), out / "marginals.csv")
    write_table(pl.concat([one.codes for one in found]), out / "codes.csv")
    with new_file(out / "marginals.svg") as partial:
        marginals_figure(found).savefig(partial, format="svg", metadata={"Date": None})
    typer.echo(f"marginals: {out}/marginals.csv, codes.csv, marginals.svg")
