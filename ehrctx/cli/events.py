"""Verbs on events: check, simulate, split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Data, Out, app, print_facts
from ehrctx.errors import InputError


@app.command()
def check(
    data: Data, out: Annotated[Path | None, typer.Option(help="also write the summary as JSON to this file")] = None
) -> None:
    """Print what a MEDS data set holds, and every rule of MEDS that it breaks, with file and row."""
    from ehrctx.artifacts import new_file
    from ehrctx.events.check import check as run
    from ehrctx.events.meds import open_dataset

    summary, violations = run(open_dataset(data))
    print_facts(summary)
    for violation in violations:
        typer.echo(f"violation: {violation}", err=True)
    if violations:
        raise InputError(
            f"{data} breaks {len(violations)} rule(s) of MEDS, listed above. Mend the files and check again."
        )
    if out is not None:
        with new_file(out) as partial:
            partial.write_text(json.dumps({"name": data.name, **summary}, indent=1) + "\n")


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
    print_facts(run(parameters_of(preset, changes, "--parameters"), subjects, seed, out, workers))


@app.command()
def split(
    data: Data,
    out: Out,
    splits: Annotated[
        str, typer.Option(help="'given', or the study key as YAML text: '{hash: [.7, .15, .15]}'")
    ] = "given",
) -> None:
    """Write subject_splits.parquet: the data set's own splits, checked, or splits from a hash of the subject."""
    from ehrctx.artifacts import new_file
    from ehrctx.configuration import settings
    from ehrctx.events.meds import open_dataset
    from ehrctx.events.splits import subject_splits
    from ehrctx.study import HashSplits

    chosen = None if splits in ("given", '"given"') else settings(HashSplits, splits, "--splits")
    table = subject_splits(open_dataset(data), chosen)
    with new_file(out) as partial:
        table.write_parquet(partial)
    print_facts(dict(table["split"].value_counts(sort=True).iter_rows()))
