"""`ehrctx label --explain`: what every label of one subject rests on, and why there is none elsewhere. Writes nothing.

The text is read off the frames of `judge`, from which the label files are made as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl

from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset, open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.shards import read_shard, shard_with
from ehrctx.printable import printable
from ehrctx.study import Labels
from ehrctx.tasks.definition import Definition, Femr, Given, Laboratory
from ehrctx.tasks.label_sets import BEYOND_LIMIT, check_profile, limited, read_concepts, read_definitions
from ehrctx.tasks.labelers import judge, labels_of

GRADES = ("normal", "mild", "moderate", "severe")
HEADS = {
    "prediction_time": "prediction time",
    "admitted": "admission",
    "discharged": "discharge",
    "length": "length",
    "transferred": "first in intensive care",
    "readmitted": "next admission",
    "time": "result at",
    "diagnosed": "first diagnosis",
    "code": "code",
    "reported": "result",
    "converted": "converted",
    "death": "death",
    "follow_up_end": "followed until",
    "answer": "label",
}
SHOWN_WHERE_KNOWN = ("death", "follow_up_end", "converted", "code")


def _events_of(dataset: Dataset, profile: DatasetProfile, subject_id: int) -> pl.DataFrame:
    """The subject's events; only the shard that holds them is read whole."""
    shard = shard_with(dataset, subject_id)
    if shard is None:
        raise InputError(f"the subject asked for is not in {dataset.root}. Give a subject_id of this data set.")
    return read_shard(dataset, shard, profile).filter(pl.col("subject_id") == subject_id)


def _mark_limit(judged: pl.DataFrame, definition: Definition, choices: Labels) -> pl.DataFrame:
    """Labels at times that `max_times_per_subject` does not keep are left out, too."""
    kept = limited(labels_of(judged), definition, choices).select("subject_id", "prediction_time").unique()
    marked = judged.join(
        kept.with_columns(_kept=True), on=["subject_id", "prediction_time"], how="left", maintain_order="left"
    )
    return (
        marked.with_columns(pl.col("left_out").cast(pl.String))
        .with_columns(
            pl.when(pl.col("left_out").is_null() & pl.col("_kept").is_null())
            .then(pl.lit(BEYOND_LIMIT))
            .otherwise(pl.col("left_out"))
            .alias("left_out")
        )
        .sort("prediction_time", maintain_order=True)
    )


def _duration(length: timedelta) -> str:
    minutes = int(length.total_seconds()) // 60
    return f"{minutes // 1440} d {minutes // 60 % 24:02} h {minutes % 60:02} min"


def _answer(left_out: str | None, positive: bool | None, grade: int | None) -> str:
    if left_out is not None:
        return f"left out: {left_out}"
    graded = f", {GRADES[grade]} (grade {grade})" if positive and grade is not None else ""
    return ("positive" if positive else "negative") + graded


def _result(number: float | None, text: str | None, unit: str | None) -> str | None:
    if number is not None:
        return f"{number:.7g} {unit or ''}".strip()  # as it was written, before it became a float32
    return f"{text!r}" if text else None


def _cells(judged: pl.DataFrame, definition: Definition) -> pl.DataFrame:
    """What is printed of each candidate, as text; null where there is nothing."""
    shown = judged.with_columns(
        answer=pl.Series(
            map(_answer, judged["left_out"], judged["boolean_value"], judged["integer_value"]), dtype=pl.String
        )
    )
    if isinstance(definition, Laboratory):
        number, text, unit, value = (judged[name] for name in ("numeric_value", "text_value", "unit", "value"))
        converted = [
            f"{v:.6g} {definition.unit}" if v is not None and abs(v - n) > 1e-5 * abs(v) else None
            for v, n in zip(value, number, strict=True)
        ]
        shown = shown.with_columns(
            reported=pl.Series(map(_result, number, text, unit), dtype=pl.String),
            converted=pl.Series(converted, dtype=pl.String),
        )
    if "length" in shown.columns:
        shown = shown.with_columns(length=pl.Series(map(_duration, shown["length"]), dtype=pl.String))
    columns = [c for c in HEADS if c in shown.columns]
    dates = [c for c in columns if shown.schema[c].is_temporal()]
    minute = {c: bool((shown[c].drop_nulls().dt.second() == 0).all()) for c in dates}
    text_of = [pl.col(c).dt.to_string("%Y-%m-%d %H:%M" if minute[c] else "%Y-%m-%d %H:%M:%S") for c in dates]
    return shown.with_columns(text_of).select(columns)


def _table(cells: pl.DataFrame) -> list[str]:
    """Aligned columns under their heads; columns that may be empty are left out if they are."""
    columns = [c for c in cells.columns if c not in SHOWN_WHERE_KNOWN or cells[c].null_count() < cells.height]
    written = ([printable(cell) if cell else "-" for cell in row] for row in cells.select(columns).iter_rows())
    rows = [[HEADS[c] for c in columns], *written]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _descriptions(judged: pl.DataFrame, codes: pl.DataFrame) -> list[str]:
    """What the codes mean, where the data set says so."""
    if "code" not in judged.columns:
        return []
    used = judged.select("code").drop_nulls().unique(maintain_order=True)
    described = codes.filter(pl.col("description") != "").unique("code", keep="first")
    found = used.join(described, on="code", maintain_order="left").select("code", "description")
    return [f"  {printable(f'{code}: {description}')}" for code, description in found.iter_rows()]


def explanation(judged: pl.DataFrame, definition: Definition, codes: pl.DataFrame, profile: DatasetProfile) -> str:
    """The judgement of one subject's candidates, for a clinician to read."""
    head = [f"{definition.task}: {definition.question}"]
    if judged.is_empty():
        what = "timed result of this test" if isinstance(definition, Laboratory) else "hospital stay that has ended"
        return "\n".join([*head, f"  No prediction time: by the profile {profile.name!r} the subject has no {what}."])
    labelled = judged["left_out"].is_null()
    counts = (
        f"  {judged.height} prediction time{'s' if judged.height > 1 else ''}: {labelled.sum()} labelled "
        f"({(labelled & judged['boolean_value'].fill_null(False)).sum()} positive), {(~labelled).sum()} left out"
    )
    return "\n".join([*head, counts, "", *_table(_cells(judged, definition)), *_descriptions(judged, codes)])


def explain(
    data: Path,
    profile_file: str,
    tasks: Sequence[str],
    choices: Labels,
    subject_id: int,
    ontology: Path | None = None,
) -> str:
    """Every candidate of one subject for each task: what it rests on, and its label or the reason why it has none.

    Raises InputError if the subject is not in the data set, or the labels are given: those come without reasons.
    """
    if choices.given:
        raise InputError("--explain tells how labels are made, but `given` ones are made already. Leave `given` out.")
    dataset = open_dataset(data)
    profile = load(DatasetProfile, find_profile(profile_file))
    read = read_definitions(tasks, choices)
    definitions = [definition for definition in read if not isinstance(definition, Given | Femr)]
    if len(definitions) < len(read):
        raise InputError("--explain tells how labels are made, but some of these tasks bring theirs. Leave them out.")
    check_profile(definitions, profile)
    codes = read_concepts(dataset, definitions, ontology)
    events = _events_of(dataset, profile, subject_id)
    texts = []
    for definition in definitions:
        judged = _mark_limit(judge(events, profile, codes, definition), definition, choices)
        texts.append(explanation(judged, definition, codes, profile))
    return "\n\n\n".join(texts)
