"""Verbs on other formats: import omop, ehrshot, femr."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ehrctx.cli.verbs import Out, StudyFile, app, print_facts, privacy_of, read_study

ImplausibleTime = Annotated[
    str, typer.Option(help="of events before the year 1700 or after 2499, births aside: refuse or drop")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="list the files that are ignored, and why")]
Splits = Annotated[str, typer.Option(help="the study key as YAML text: '{hash: [.7, .15, .15], seed: 0}'")]

imports = typer.Typer(no_args_is_help=True, help="Turn a data set of another format into MEDS.")
app.add_typer(imports, name="import")


@imports.command()
def omop(
    folder: Annotated[Path, typer.Argument(help="folder of the CDM's tables, CSV or parquet")],
    out: Out,
    codes: Annotated[str, typer.Option(help="standard, or source: which concept is the code")] = "standard",
    before_birth: Annotated[
        str, typer.Option(help="of events more than 30 days before birth: refuse or drop")
    ] = "refuse",
    implausible_time: ImplausibleTime = "refuse",
    splits: Splits = "{hash: [.7, .15, .15]}",
    study: StudyFile = None,
    verbose: Verbose = False,
) -> None:
    """Turn an OMOP CDM 5.3 or 5.4 into MEDS, and print what was counted."""
    from ehrctx.configuration import settings, validate
    from ehrctx.events.omop.convert import import_omop
    from ehrctx.study import HashSplits, OmopOptions

    chosen = {"codes": codes, "before_birth": before_birth, "implausible_time": implausible_time}
    options = validate(OmopOptions, chosen, "ehrctx import omop")
    privacy = privacy_of(read_study(study))
    print_facts(import_omop(folder, out, options, settings(HashSplits, splits, "--splits"), verbose), privacy)


@imports.command()
def ehrshot(
    folder: Annotated[Path, typer.Argument(help="folder into which EHRSHOT's CSV release was unpacked")],
    out: Out,
    concepts: Annotated[
        Path | None, typer.Option(help="folder of an OMOP vocabulary from Athena, which describes the codes")
    ] = None,
    study: StudyFile = None,
    implausible_time: ImplausibleTime = "refuse",
    verbose: Verbose = False,
) -> None:
    """Turn EHRSHOT's CSV release into MEDS, with its own splits, labels and few-shot draws."""
    from ehrctx.configuration import validate
    from ehrctx.study import ImportOptions
    from ehrctx.tasks.ehrshot import import_ehrshot

    options = validate(ImportOptions, {"implausible_time": implausible_time}, "ehrctx import ehrshot")
    privacy = privacy_of(read_study(study))
    print_facts(import_ehrshot(folder, out, concepts, options.implausible_time, verbose), privacy)


@imports.command()
def femr(
    folder: Annotated[Path, typer.Argument(help="folder of a meds_reader database, or an extract of femr 0.1")],
    out: Out,
    environment: Annotated[
        Path, typer.Option(help="where what reads an extract of femr 0.1 is installed; made if it is not there")
    ] = Path("results/environments/femr01"),
    study: StudyFile = None,
    implausible_time: ImplausibleTime = "refuse",
    verbose: Verbose = False,
) -> None:
    """Turn what femr keeps into MEDS: a database of femr 0.2, or an extract of femr 0.1."""
    from ehrctx.configuration import validate
    from ehrctx.events.femr import import_femr
    from ehrctx.study import ImportOptions

    options = validate(ImportOptions, {"implausible_time": implausible_time}, "ehrctx import femr")
    privacy = privacy_of(read_study(study))
    print_facts(import_femr(folder, out, environment, options.implausible_time, verbose), privacy)
