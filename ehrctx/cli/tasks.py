"""Verbs on tasks: label."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.datasets import Profile, profile_for, tell_files
from ehrctx.cli.imports import Verbose
from ehrctx.cli.verbs import Data, Settings, StudyFile, app, print_facts, privacy_of, read_study
from ehrctx.errors import InputError


@app.command()
def label(
    data: Data,
    task: Annotated[list[str], typer.Option(help="a shipped definition, or the path of one or of labels; repeatable")],
    out: Annotated[Path | None, typer.Option(help="what to write; replaced only when complete")] = None,
    profile: Profile = None,
    settings: Settings = None,
    ontology: Annotated[Path | None, typer.Option(help="folder of an OMOP vocabulary from Athena")] = None,
    explain: Annotated[
        int | None,
        typer.Option(metavar="SUBJECT", help="print why this subject has its labels, from its record; write nothing"),
    ] = None,
    study: StudyFile = None,
    verbose: Verbose = False,
) -> None:
    """Write one label file per task, in the MEDS label schema. Settings: the study's `labels`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.study import Labels

    chosen = parse(Labels, settings)
    if (out is None) == (explain is None):
        raise InputError("give either --out (to write labels) or --explain (to print those of one subject).")
    chosen_profile = profile_for(data, profile)
    tell_files(data, verbose)
    if explain is not None:
        from ehrctx.tasks.explain import explain as text_of

        typer.echo(text_of(data, chosen_profile, task, chosen, explain, ontology))
    elif out is not None:
        from ehrctx.tasks.label_sets import write_labels

        privacy = privacy_of(read_study(study))
        print_facts(write_labels(data, chosen_profile, task, chosen, out, ontology, verbose), privacy)
