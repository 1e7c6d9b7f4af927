"""`ehrctx`: one verb per stage. Parses, calls, prints; heavy libraries are imported by the verb that needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ehrctx import __version__
from ehrctx.errors import InputError

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which architecture and which context length predict best on your patients, and how sure are we?",
)

Data = Annotated[Path, typer.Argument(help="folder of a MEDS data set")]
Out = Annotated[Path, typer.Option(help="what to write; replaced only when complete")]
Profile = Annotated[str, typer.Option(help="a profile in pipelines/datasets/, or the path of one")]
SplitsFile = Annotated[Path, typer.Option("--splits", help="subject_splits.parquet (see `ehrctx split`)")]
LabelsFolder = Annotated[Path, typer.Option("--labels", help="folder that `ehrctx label` wrote")]
TimelinesFolder = Annotated[Path, typer.Option("--timelines", help="folder that `ehrctx tokenize` wrote")]
Settings = Annotated[
    str | None, typer.Option(help="this section of a study file as YAML text; the defaults if left out")
]
Store = Annotated[Path | None, typer.Option(help="MLflow's SQLite file; no tracking if left out")]


# What counts people or their labels in the facts of a verb: printed, and so logged, without small numbers.
COUNTED = {
    "labels", "positive", "left_out", "without_features", "without_timeline", "zero_or_undefined", "subjects", "rows",
    "subjects_without_token", "events_by_outcome", "events_before_origin", "train", "tuning", "held_out",
    "prediction_times", "unmatched",
}  # fmt: skip


def _shown(facts: Any, least: int, counted: bool = False) -> Any:
    if isinstance(facts, dict):
        return {name: _shown(value, least, counted or name in COUNTED) for name, value in facts.items()}
    return f"<{least}" if counted and isinstance(facts, int) and 0 < facts < least else facts


def _print(facts: dict) -> None:
    """Prints what a verb counted; its manifest holds the exact numbers."""
    from ehrctx.study import Privacy

    typer.echo(json.dumps(_shown(facts, Privacy().minimum_count), indent=1, default=str))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def check(
    data: Data, out: Annotated[Path | None, typer.Option(help="also write the summary as JSON to this file")] = None
) -> None:
    """Print what a MEDS data set holds, and every rule of MEDS that it breaks, with file and row."""
    from ehrctx.artifacts import new_file
    from ehrctx.events.check import check as run
    from ehrctx.events.meds import open_dataset

    summary, violations = run(open_dataset(data))
    _print(summary)
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
    seed: Annotated[int, typer.Option(help="the same seed gives the same cohort", min=0)] = 0,
) -> None:
    """Write a small seeded MEDS cohort in which an early episode raises a later risk."""
    from ehrctx.events.simulate.cohort import simulate as run
    from ehrctx.study import Simulation

    _print(run(Simulation(subjects=subjects, seed=seed), out))


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
    _print(dict(table["split"].value_counts(sort=True).iter_rows()))


@app.command()
def tokenize(
    data: Data,
    splits: SplitsFile,
    out: Out,
    tokenizer: Annotated[str, typer.Option(help="a spec in tokenizers/, or the path of one")] = "clmbr",
    profile: Profile = "simulated",
) -> None:
    """Fit the vocabulary on the train split and turn every subject's events into an integer timeline."""
    from ehrctx.timelines.build import build_timelines

    _print(build_timelines(data, profile, splits, tokenizer, out))


@app.command()
def label(
    data: Data,
    task: Annotated[list[str], typer.Option(help="a shipped definition, or the path of one or of labels; repeatable")],
    out: Annotated[Path | None, typer.Option(help="what to write; replaced only when complete")] = None,
    profile: Profile = "simulated",
    settings: Settings = None,
    ontology: Annotated[Path | None, typer.Option(help="folder of an OMOP vocabulary from Athena")] = None,
    explain: Annotated[
        int | None,
        typer.Option(metavar="SUBJECT", help="print why this subject has its labels, from its record; write nothing"),
    ] = None,
) -> None:
    """Write one label file per task, in the MEDS label schema. Settings: the study's `labels`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.study import Labels

    chosen = parse(Labels, settings)
    if (out is None) == (explain is None):
        raise InputError("give either --out (to write labels) or --explain (to print those of one subject).")
    if explain is not None:
        from ehrctx.tasks.explain import explain as text_of

        typer.echo(text_of(data, profile, task, chosen, explain, ontology))
    elif out is not None:
        from ehrctx.tasks.label_sets import write_labels

        _print(write_labels(data, profile, task, chosen, out, ontology))


@app.command()
def groups(
    data: Data,
    labels: LabelsFolder,
    out: Out,
    profile: Profile = "simulated",
) -> None:
    """Write to which groups (age, sex, what the profile names) each subject belongs at each prediction time."""
    from ehrctx.probe.groups import write_groups

    _print(write_groups(data, profile, labels, out))


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

            yield training_logger(tracking, experiment, model, chosen, start)

    folder = checkpoints if checkpoints is not None else out.with_name(f"{out.name}.checkpoints")
    facts = run(timelines, model, chosen, out, folder, loggers(), start=start)
    if is_first_process():
        _print(facts)


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

    _print(run(model, out, timelines, parse(Privacy, privacy, "--privacy").minimum_count))


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
) -> None:
    """Write one representation for every distinct (subject, prediction time). Settings: the study's `embedding`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.probe.embed import embed as run
    from ehrctx.study import Embedding

    _print(run(model, timelines, labels, out, context, batch_tokens, threads, parse(Embedding, settings)))


@app.command()
def probe(
    labels: LabelsFolder,
    out: Out,
    embeddings: Annotated[Path | None, typer.Option(help="folder that `ehrctx embed` wrote")] = None,
    timelines: Annotated[Path | None, typer.Option(help="for the count baseline: folder of `ehrctx tokenize`")] = None,
    settings: Settings = None,
) -> None:
    """Fit the linear probe on embeddings, or on counts (--timelines), and predict. Settings: the study's `probe`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.probe.predict import probe_counts, probe_embeddings
    from ehrctx.study import Probe

    chosen = parse(Probe, settings)
    if (embeddings is None) == (timelines is None):
        raise InputError("give either --embeddings (a model) or --timelines (the count baseline).")
    if timelines is not None:
        _print(probe_counts(timelines, labels, chosen, out))
    elif embeddings is not None:
        _print(probe_embeddings(embeddings, labels, chosen, out))


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
) -> None:
    """Score all models on held-out subjects, with paired intervals. Settings: the study's `statistics`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.probe.tables import write_scores
    from ehrctx.study import Privacy, Statistics

    chosen = parse(Statistics, settings), parse(Privacy, privacy, "--privacy")
    table = write_scores(predictions, model, labels, groups, splits, *chosen, out)
    if tracking is not None:
        from ehrctx.report.tracking import log_scores

        log_scores(tracking, experiment, table)
    typer.echo(f"{table['task'].n_unique()} tasks, {table['model'].n_unique()} models: {out}/scores.csv")


@app.command()
def properties(timelines: TimelinesFolder, labels: LabelsFolder, out: Out) -> None:
    """Write repetition, irregularity and length of the history at every prediction time."""
    from ehrctx.robustness.properties import write_properties

    _print(write_properties(timelines, labels, out))


@app.command()
def perplexity(
    model: Annotated[Path, typer.Option(help="folder that `ehrctx pretrain` wrote")],
    timelines: TimelinesFolder,
    out: Out,
    settings: Settings = None,
    batch_tokens: Annotated[int, typer.Option(help="tokens of one forward pass, padding included", min=1)] = 8_192,
    threads: Annotated[int, typer.Option(help="CPU threads", min=1)] = 2,
) -> None:
    """Write the loss of every token of held-out timelines. Settings: the study's `perplexity`."""
    from ehrctx.configuration import settings as parse
    from ehrctx.robustness.token_losses import write_token_losses
    from ehrctx.study import Perplexity

    _print(write_token_losses(model, timelines, parse(Perplexity, settings), out, batch_tokens, threads))


@app.command()
def robustness(
    predictions: Annotated[list[Path], typer.Option(help="folders that `ehrctx probe` wrote; repeat for several")],
    properties: Annotated[Path, typer.Option(help="folder that `ehrctx properties` wrote")],
    losses: Annotated[list[Path], typer.Option(help="folders that `ehrctx perplexity` wrote; repeat for several")],
    out: Annotated[Path, typer.Option(help="folder for strata.csv and perplexity.csv")],
    statistics: Annotated[str | None, typer.Option(help="the study's `statistics` as YAML text")] = None,
    perplexity: Annotated[str | None, typer.Option(help="the study's `perplexity` as YAML text")] = None,
    privacy: Annotated[str | None, typer.Option(help="the study's `privacy` as YAML text")] = None,
) -> None:
    """Write Brier scores by quartile of each property, and perplexity by token position, with intervals."""
    from ehrctx.configuration import settings as parse
    from ehrctx.robustness.tables import write_tables
    from ehrctx.study import Perplexity, Privacy, Statistics

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

    found = run(load(Study, find(study, Path("pipelines/studies"), "study")), measure)
    if as_json:
        _print(found)
    else:
        typer.echo(plan_text(found))
    if measure:
        refuse_what_does_not_fit(found)


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


def main() -> None:
    """The console command: bad input is one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
