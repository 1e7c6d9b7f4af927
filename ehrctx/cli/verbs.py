"""What all verbs share: the program itself, the options that several take, and how facts are printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ehrctx import __version__

if TYPE_CHECKING:
    from ehrctx.study import Privacy, Study

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Which architecture and which context length predict best on your patients, and how sure are we?",
)

Data = Annotated[Path, typer.Argument(help="folder of a MEDS data set")]
Out = Annotated[Path, typer.Option(help="what to write; replaced only when complete")]
SplitsFile = Annotated[Path, typer.Option("--splits", help="subject_splits.parquet (see `ehrctx split`)")]
LabelsFolder = Annotated[Path, typer.Option("--labels", help="folder that `ehrctx label` wrote")]
TimelinesFolder = Annotated[Path, typer.Option("--timelines", help="folder that `ehrctx tokenize` wrote")]
Settings = Annotated[
    str | None, typer.Option(help="this section of a study file as YAML text; the defaults if left out")
]
StudyFile = Annotated[
    str | None,
    typer.Option(
        "--study",
        help="the study, a file or YAML text: what is read must have been made as it says, all the way from the "
        "events, and its `privacy` masks the counts that are printed",
    ),
]
Store = Annotated[Path | None, typer.Option(help="MLflow's SQLite file; no tracking if left out")]


# What counts people or their labels in the facts of a verb: printed, and so logged, without small numbers.
COUNTED = {
    "labels", "positive", "left_out", "without_features", "without_timeline", "zero_or_undefined", "subjects", "rows",
    "subjects_without_token", "events_by_outcome", "events_before_origin", "train", "tuning", "held_out",
    "prediction_times", "unmatched", "tables", "adjusted", "ends_of_visits", "subjects_by_hash_split",
    "labels_of_subjects_without_events", "births_too_early",
}  # fmt: skip


def _shown(facts: Any, privacy: Privacy, counted: bool = False) -> Any:
    if isinstance(facts, dict):
        return {name: _shown(value, privacy, counted or name in COUNTED) for name, value in facts.items()}
    is_small = counted and isinstance(facts, int) and 0 < facts < privacy.minimum_count
    return privacy.shown(facts) if is_small else facts


def read_study(text: str | None) -> Study | None:
    """The study of `--study`, which is the path of a file or YAML text; None if left out."""
    if text is None:
        return None
    from ehrctx.configuration import load, settings
    from ehrctx.study import Study

    is_path = text.endswith((".yaml", ".yml", ".json"))
    return load(Study, Path(text)) if is_path else settings(Study, text, "--study")


def privacy_of(study: Study | None) -> Privacy:
    """What may be printed of few people: the study's choice, else the default."""
    from ehrctx.study import Privacy

    return Privacy() if study is None else study.privacy


def check_inputs(study: Study | None, *artefacts: Path) -> None:
    """Raises InputError where there is a study and one of `artefacts`, or what it was made from, does not fit it."""
    if study is not None:
        from ehrctx.provenance import require_current

        require_current(study, artefacts)


def print_facts(facts: dict, privacy: Privacy) -> None:
    """Prints what a verb counted; its manifest holds the exact numbers."""
    typer.echo(json.dumps(_shown(facts, privacy), indent=1, default=str))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="print the version and end")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
