"""From events to labels, one function per family of tasks (context-clues: EHRSHOT's definitions).

All return the MEDS label schema: subject_id int64, prediction_time datetime[us], boolean_value, integer_value (a grade,
for laboratory tasks), in order of subject and time, and count what they left out and why.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import polars as pl

from ehrctx.events.ontology import codes_of
from ehrctx.events.profile import DatasetProfile
from ehrctx.tasks.definition import Definition, Diagnosis, Laboratory, Stay
from ehrctx.tasks.visits import hospital_stays

LABEL_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "integer_value": pl.Int64,
}
Labels = tuple[pl.DataFrame, Counter[str]]


def _end_of_day(time: pl.Expr) -> pl.Expr:
    """23:59:00 of the day of `time`."""
    return time.dt.truncate("1d").dt.offset_by("23h59m")


def _finish(labels: pl.DataFrame) -> pl.DataFrame:
    columns = [pl.col(c) if c in labels.columns else pl.lit(None).alias(c) for c in LABEL_SCHEMA]
    return labels.select(columns).cast(LABEL_SCHEMA).sort("subject_id", "prediction_time", maintain_order=True)  # type: ignore[arg-type]


def label_stays(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Stay) -> Labels:
    """Is the stay at least so many days long (discharge minus admission, to the second)?"""
    stays = hospital_stays(events, profile)
    same_day = stays["admitted"].dt.date() == stays["discharged"].dt.date()
    kept = stays.filter(~same_day)
    labels = kept.select(
        "subject_id",
        prediction_time=_end_of_day(pl.col("admitted")),
        boolean_value=(pl.col("discharged") - pl.col("admitted")) >= pl.duration(days=task.at_least_days),
    )
    return _finish(labels), Counter({"discharged on the admission day": int(same_day.sum())})


def label_results(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Laboratory) -> Labels:
    """Is the result abnormal? Results in text count as normal, as in EHRSHOT; grade 0 is normal, 3 severe."""
    tests = codes_of(task.result, events["code"].unique(), codes)
    first = events.group_by("subject_id").agg(_first=pl.col("time").min())
    conversions = pl.DataFrame({"unit": list(task.conversions), "factor": list(task.conversions.values())})
    results = (
        events.filter(pl.col("code").is_in(list(tests)) & pl.col("time").is_not_null())
        .join(first, on="subject_id", maintain_order="left")
        .join(conversions, on="unit", how="left", maintain_order="left")
    )
    is_number = pl.col("numeric_value").is_finite().fill_null(False)
    is_text = (pl.col("text_value").str.len_bytes() > 0).fill_null(False)
    value = (pl.col("numeric_value").cast(pl.Float64) * pl.col("factor")).round_sig_figs(6)
    beyond = {
        "at_most": lambda threshold: value <= threshold,
        "below": lambda threshold: value < threshold,
        "above": lambda threshold: value > threshold,
    }[task.abnormal]
    grade = pl.sum_horizontal([beyond(t).fill_null(False).cast(pl.Int64) for t in task.thresholds])
    reason = (
        pl.when(pl.col("time") == pl.col("_first"))
        .then(pl.lit("at the subject's first event time"))
        .when(~is_number & ~is_text)
        .then(pl.lit("without a value"))
        .when(is_number & pl.col("factor").is_null())
        .then(pl.lit("in an unknown unit"))
    )
    judged = results.with_columns(_reason=reason, _grade=pl.when(is_number).then(grade).otherwise(0))
    labels = judged.filter(pl.col("_reason").is_null()).select(
        "subject_id",
        prediction_time=pl.col("time").dt.offset_by("-1m"),
        boolean_value=pl.col("_grade") > 0,
        integer_value="_grade",
    )
    left_out = judged.drop_nulls("_reason").group_by("_reason").len()
    return _finish(labels), Counter(dict(left_out.iter_rows()))


def label_diagnoses(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Diagnosis) -> Labels:
    """Is the disease first diagnosed in the window after a discharge? A record that ends earlier is negative."""
    disease = codes_of(task.diagnosis, events["code"].unique(), codes)
    first = (
        events.filter(pl.col("code").is_in(list(disease)) & pl.col("time").is_not_null())
        .group_by("subject_id")
        .agg(_diagnosed=pl.col("time").min())
    )
    discharges = (
        hospital_stays(events, profile)
        .select("subject_id", prediction_time=_end_of_day(pl.col("discharged")))
        .join(first, on="subject_id", how="left")
    )
    after = discharges["_diagnosed"] < discharges["prediction_time"]
    more_than, at_most = (pl.duration(days=d) for d in task.within_days)
    wait = pl.col("_diagnosed") - pl.col("prediction_time")
    labels = discharges.filter(~after.fill_null(False)).select(
        "subject_id",
        "prediction_time",
        boolean_value=((wait > more_than) & (wait <= at_most)).fill_null(False),
    )
    return _finish(labels), Counter({"after the first diagnosis": int(after.sum() or 0)})


def label_shard(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Definition) -> Labels:
    """The labels of one shard's subjects (subjects never span shards), and what was left out and why."""
    if isinstance(task, Stay):
        return label_stays(events, profile, codes, task)
    if isinstance(task, Laboratory):
        return label_results(events, profile, codes, task)
    return label_diagnoses(events, profile, codes, task)
