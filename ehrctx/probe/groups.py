"""`ehrctx groups`: the groups of a subject at each prediction time: its age band, and what the profile names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest
from ehrctx.configuration import load
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile, matches
from ehrctx.events.rules import LONGEST_LIFE
from ehrctx.events.shards import read_shards
from ehrctx.tasks.label_sets import prediction_times, read_labels

KIND = "groups"
AGE = "age"
AGE_BANDS = {18: "0-17", 45: "18-44", 65: "45-64", 80: "65-79"}  # under so many years -> band
OLDEST = "80+"
UNKNOWN = "unknown"
_KEY = ["subject_id", "prediction_time"]


def _age_band(birth: pl.Expr, at: pl.Expr) -> pl.Expr:
    bands = [
        pl.when(at < birth.dt.offset_by(f"{under}y")).then(pl.lit(name))
        for under, name in ((0, UNKNOWN), *AGE_BANDS.items())
    ]
    return pl.coalesce(*bands, pl.when(birth.is_not_null()).then(pl.lit(OLDEST)), pl.lit(UNKNOWN))


def _last_level(events: pl.DataFrame, levels: dict[str, tuple[str, ...]], keys: pl.DataFrame) -> pl.Series:
    """Which of `levels` the last visible event of each key says; static events come before all others."""
    level = pl.coalesce(pl.when(matches(pl.col("code"), codes)).then(pl.lit(name)) for name, codes in levels.items())
    said = (
        events.select("subject_id", time=pl.col("time").fill_null(pl.datetime(1, 1, 1)), level=level)
        .drop_nulls("level")
        .with_columns(pl.col("time").dt.offset_by("999999us").dt.truncate("1s").cast(pl.Datetime("us")))
        .sort("time", maintain_order=True)
    )
    found = (
        keys.with_row_index("_row")
        .with_columns(time=pl.col("prediction_time").dt.truncate("1s"))
        .sort("time")
        .join_asof(said, on="time", by="subject_id", strategy="backward", check_sortedness=False)
    )
    return found.sort("_row")["level"].fill_null(UNKNOWN)


def groups_at(events: pl.DataFrame, profile: DatasetProfile, keys: pl.DataFrame) -> pl.DataFrame:
    """`keys` (subject_id, prediction_time) with a column of level names for `age` and each of `profile.groups`.

    `events` are those of `read_shards`. Only what is known at the prediction time counts; a group of which nothing is
    known is "unknown".
    """
    is_birth = pl.col("code") == profile.birth
    last = pl.col("time").max().over("subject_id")  # a birth too long before it is not believed (see `shards.Lives`)
    is_known = is_birth & (last - pl.col("time").dt.truncate("1s") <= LONGEST_LIFE)
    births = events.filter(is_known).group_by("subject_id").agg(birth=pl.col("time").min())
    placed = keys.join(births, on="subject_id", how="left", maintain_order="left")
    placed = placed.with_columns(_age_band(pl.col("birth"), pl.col("prediction_time")).alias(AGE)).drop("birth")
    return placed.with_columns(_last_level(events, levels, keys).alias(name) for name, levels in profile.groups.items())


def write_groups(data: Path, profile_file: str, labels_folder: Path, out: Path) -> dict[str, Any]:
    """Writes groups.parquet to `out`: (subject_id, prediction_time) of all labels, and a column for each group.

    Labels of subjects without events are left out. Returns how many prediction times each level has.
    """
    dataset = open_dataset(data)
    profile = load(DatasetProfile, find_profile(profile_file))
    keys = prediction_times(read_labels(labels_folder))
    facts: dict[str, Any] = {}
    settings = {"profile": profile.model_dump()}
    with new_artifact(out, KIND, settings, {"events": dataset.source(), "labels": labels_folder}, facts) as folder:
        found = []
        for events in read_shards(dataset, profile):
            own = keys.join(events.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
            found.append(groups_at(events, profile, own))
        table = pl.concat(found).sort(_KEY)
        table.write_parquet(folder / "groups.parquet")
        facts["prediction_times"] = {
            name: dict(table[name].value_counts().sort(name).iter_rows()) for name in table.columns[len(_KEY) :]
        }
    return facts


def read_groups(folder: Path) -> pl.DataFrame:
    """(subject_id, prediction_time) and a column of level names for each group."""
    read_manifest(folder, KIND)
    return pl.read_parquet(Path(folder) / "groups.parquet")
