"""Verbs on models: pretrain, export, plan."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ehrctx.cli.verbs import (
    Out,
    Settings,
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

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@app.command()
def pretrain(
    timelines: TimelinesFolder,
    model: Annotated[str, typer.Option(help="<arch>-<size>-<context>[-s<seed>], as in mamba-tiny-4096")],
    out: Out,
    checkpoints: Annotated[
        Path | None, typer.Option(help="where to resume from; <out>.checkpoints if left out")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option("--from", help="folder of a pretrained model whose weights are the first, instead of random ones"),
    ] = None,
    settings: Settings = None,
    running: Annotated[
        str | None, typer.Option(help="how it is run, of the same section: threads, devices, checkpoint_seconds …")
    ] = None,
    tracking: Store = None,
    experiment: Annotated[str, typer.Option(help="MLflow's experiment")] = "ehrctx",
    study: StudyFile = None,
) -> None:
    """Train one model on next tokens; resumes where it was killed. Settings: the study's `pretraining`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.pretrain.distribution import is_first_process
    from ehrctx.pretrain.run import pretrain as run
    from ehrctx.study import Pretraining

    chosen = parse(Pretraining, settings)
    if running is not None:
        given = parse(Pretraining, running, "--running").model_dump(exclude_unset=True)
        if learned := sorted(given.keys() - set(Pretraining.RUNNING)):
            raise InputError(f"--running: `{learned[0]}` changes what is learned. Give it with --settings.")
        chosen = chosen.model_copy(update=given)

    def loggers() -> Iterator[Logger]:  # not yet: a call that is refused makes no run
        if tracking is not None and is_first_process():
            from ehrctx.report.tracking import training_logger

            yield training_logger(tracking, experiment, model, chosen, start, timelines)

    whole = read_study(study)
    from_study = [start] if start is not None and whole is not None and start.name in whole.models else []
    check_inputs(whole, timelines, *from_study)
    folder = checkpoints if checkpoints is not None else out.with_name(f"{out.name}.checkpoints")
    facts = run(timelines, model, chosen, out, folder, loggers(), start=start)
    if is_first_process():
        print_facts(facts, privacy_of(whole))


@app.command()
def export(
    model: Annotated[Path, typer.Option(help="folder that `ehrctx pretrain` wrote")],
    out: Out,
    timelines: Annotated[
        Path | None, typer.Option(help="also ship what each token id means: the model's folder of `ehrctx tokenize`")
    ] = None,
    privacy: Annotated[str | None, typer.Option(help="the study's `privacy` as YAML text")] = None,
) -> None:
    """Write a model as a folder that transformers loads without ehrctx, with a model card."""
    from ehrctx.configuration import settings as parse
    from ehrctx.pretrain.release import export as run
    from ehrctx.study import Privacy

    chosen = parse(Privacy, privacy, "--privacy")
    print_facts(run(model, out, timelines, chosen.minimum_count), chosen)


@app.command()
def plan(
    study: Annotated[str, typer.Argument(help="a study in pipelines/studies/, or the path of one")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="time 20 steps of each model, and refuse what does not fit")
    ] = False,
) -> None:
    """Print what the trainings of a study take on this machine: parameters, steps, time, memory. Nothing is trained."""
    from ehrctx.configuration import find, load
    from ehrctx.pretrain.plan import plan as run
    from ehrctx.pretrain.plan import plan_text, refuse_what_does_not_fit
    from ehrctx.study import Study

    chosen = load(Study, find(study, Path("pipelines/studies"), "study"))
    planned = run(chosen, measure)
    if as_json:
        print_facts(planned, chosen.privacy)
    else:
        typer.echo(plan_text(planned))
    if measure:
        refuse_what_does_not_fit(planned)
