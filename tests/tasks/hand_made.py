"""Hand-made timelines, as `read_shard` gives them, and what a task makes of them."""

from datetime import datetime

import polars as pl

from ehrctx.events.profile import DatasetProfile
from ehrctx.tasks.labelers import judge, labels_of, reasons_of

PROFILE = DatasetProfile(
    name="p",
    admission=("IN",),
    discharge=("OUT", "OUT DEAD"),
    discharged_dead=("OUT DEAD",),
    icu_admission=("ICU",),
    death=("DEATH",),
    follow_up_end="death",
    visit_column="visit",
)
BY_ORDER = PROFILE.model_copy(update={"visit_column": None})
NO_CODES = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})
EVENTS = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
    "visit": pl.Int64,
}


def event(time: datetime | None, code: str, visit: int | None = None, subject: int = 1) -> dict:
    return {"subject_id": subject, "time": time, "code": code, "visit": visit}


def stay_of(admitted: datetime, discharged: datetime, visit: int | None = 1, out: str = "OUT") -> list[dict]:
    return [event(admitted, "IN", visit), event(discharged, out, visit)]


def events_of(rows: list[dict]) -> pl.DataFrame:
    """Rows of dicts in the order of `read_shard`, of subject 1 unless they say otherwise."""
    events = pl.DataFrame([{"subject_id": 1} | row for row in rows], schema=EVENTS)
    return events.sort("subject_id", "time", nulls_last=False, maintain_order=True)


def label_shard(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task):
    """The labels, and how many candidates were left out for which reason."""
    judged = judge(events, profile, codes, task)
    return labels_of(judged), reasons_of(judged)


def labelled(rows: list[dict], task, profile: DatasetProfile = PROFILE) -> tuple[dict, dict]:
    """Prediction time -> label of subject 1, and how many stays were left out for which reason."""
    labels, left_out = label_shard(events_of(rows), profile, NO_CODES, task)
    one = labels.filter(subject_id=1)
    assert one["prediction_time"].is_unique().all()
    return dict(one.select("prediction_time", "boolean_value").rows()), dict(+left_out)
