"""Verbs on events: check, simulate, split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Data, Out, StudyFile, app, print_facts, privacy_of, read_study
from ehrctx.errors import InputError


@app.command()
def check(
    data: Data,
    profile: Annotated[str | None, typer.Option(help="also check what this profile asks for; its name or path")] = None,
    out: Annotated[Path | None, typer.Option(help="also write the summary as JSON to this file")] = None,
    study: StudyFile = None,
) -> None:
    """Print what a MEDS data set holds, and every rule of MEDS that it breaks, with file and row."""
    from ehrctx.artifacts import write_provenance
    from ehrctx.configuration import load
    from ehrctx.events.check import check as run
    from ehrctx.events.meds import open_dataset
    from ehrctx.events.profile import DatasetProfile, find_profile

    dataset, privacy = open_dataset(data), privacy_of(read_study(study))
    summary, violations = run(dataset)
    print_facts(summary, privacy)
    for violation in violations:
        typer.echo(f"violation: {violation}", err=True)
    if violations:
        raise InputError(
            f"{data} breaks {len(violations)} rule(s) of MEDS, listed above. Mend the files and check again."
        )
    if out is not None:
        chosen = {} if profile is None else {"profile": load(DatasetProfile, find_profile(profile)).model_dump()}
        write_provenance(out, {"name": data.name, **summary, **chosen}, {"events": dataset.source()}, [])


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

    chosen = None if splits in ("given", '"given"') else settings(HashSplits, splits, "--splits")
    dataset = open_dataset(data)
    table = subject_splits(dataset, chosen)
    write_splits(table, dataset, chosen, out)
    print_facts(dict(table["split"].value_counts(sort=True).iter_rows()), privacy_of(read_study(study)))


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
