"""From events to labels, one function per family of tasks (context-clues: EHRSHOT's definitions).

All return the MEDS label schema: subject_id int64, prediction_time datetime[us], boolean_value, integer_value (a grade,
for laboratory tasks), in order of subject and time, and count what they left out and why. Where several reasons apply,
the first counts.
"""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import polars as pl

from ehrctx.events.ontology import codes_of
from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.tasks.definition import Censored, Definition, Diagnosis, Icu, Laboratory, Readmission, Stay
from ehrctx.tasks.follow_up import deaths, follow_up_ends, outlasts_follow_up
from ehrctx.tasks.visits import admissions, hospital_stays

LABEL_SCHEMA: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "boolean_value": pl.Boolean,
    "integer_value": pl.Int64,
}
SAME_DAY_STAY = pl.col("admitted").dt.date() == pl.col("discharged").dt.date()
Labels = tuple[pl.DataFrame, Counter[str]]


def _end_of_day(time: pl.Expr) -> pl.Expr:
    """23:59:00 of the day of `time`."""
    return time.dt.truncate("1d").dt.offset_by("23h59m")


def _finish(labels: pl.DataFrame) -> pl.DataFrame:
    columns = [pl.col(c) if c in labels.columns else pl.lit(None).alias(c) for c in LABEL_SCHEMA]
    return labels.select(columns).cast(LABEL_SCHEMA).sort("subject_id", "prediction_time", maintain_order=True)  # type: ignore[arg-type]


def _leave_out(candidates: pl.DataFrame, reasons: dict[str, pl.Expr]) -> Labels:
    """The candidates to which no reason applies, and how many were left out for which; null does not apply."""
    reason = pl.coalesce(pl.when(applies).then(pl.lit(name)) for name, applies in reasons.items())
    judged = candidates.with_columns(_reason=reason)
    counts = judged.drop_nulls("_reason").group_by("_reason").len()
    left_out = Counter(dict.fromkeys(reasons, 0) | dict(counts.iter_rows()))
    return judged.filter(pl.col("_reason").is_null()), left_out


def _censored(rule: Censored, days: float) -> dict[str, pl.Expr]:
    """The reason to leave out horizons of so many days after the prediction time, unless the rule judges them all."""
    if rule == "negative":
        return {}
    horizon = pl.col("prediction_time") + timedelta(days=days)
    return {f"followed for less than {days:g} days": outlasts_follow_up(horizon)}


def label_stays(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Stay) -> Labels:
    """Is the stay at least so many days long (discharge minus admission, to the second)?"""
    stays, left_out = _leave_out(hospital_stays(events, profile), {"discharged on the admission day": SAME_DAY_STAY})
    labels = stays.select(
        "subject_id",
        prediction_time=_end_of_day(pl.col("admitted")),
        boolean_value=(pl.col("discharged") - pl.col("admitted")) >= pl.duration(days=task.at_least_days),
    )
    return _finish(labels), left_out


def _icu_entries(events: pl.DataFrame, profile: DatasetProfile, stays: pl.DataFrame) -> pl.DataFrame:
    """(stay, entered, admitted, discharged) of the ICU admissions of each stay, by the stay's row number.

    An ICU admission belongs to the stay of its visit; where it or the stay has none, to the stays that it falls into.
    """
    icu = events.filter(matches(pl.col("code"), profile.icu_admission))
    pairs = stays.join(icu.select("subject_id", entered="time", icu_visit="visit"), on="subject_id")
    same_visit = pl.col("icu_visit") == pl.col("visit")  # null where one has none
    within = pl.col("entered").is_between("admitted", "discharged")
    return pairs.filter(pl.coalesce(same_visit, within)).select("stay", "entered", "admitted", "discharged")


def label_icu_transfers(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Icu) -> Labels:
    """Does the patient come to intensive care after the admission day and before the stay ends?

    Who is there on the admission day already (or was before it, in the same visit) is left out, even when a second
    transfer follows.
    """
    stays = hospital_stays(events, profile).with_row_index("stay")
    entered, prediction_time = pl.col("entered"), _end_of_day(pl.col("admitted"))
    transfers = (
        _icu_entries(events, profile, stays)
        .group_by("stay")
        .agg(
            early=(entered.dt.date() <= pl.col("admitted").dt.date()).any(),
            later=((entered > prediction_time) & (entered <= pl.col("discharged"))).any(),
        )
    )
    kept, left_out = _leave_out(
        stays.join(transfers, on="stay", how="left"),
        {
            "discharged on the admission day": SAME_DAY_STAY,
            "in intensive care by the admission day": pl.col("early"),
        },
    )
    labels = kept.select("subject_id", prediction_time=prediction_time, boolean_value=pl.col("later").fill_null(False))
    return _finish(labels), left_out


def _next_admissions(events: pl.DataFrame, profile: DatasetProfile, stays: pl.DataFrame) -> pl.DataFrame:
    """(stay, readmitted): the first admission at or after each stay's discharge, other than its own."""
    following = admissions(events, profile).select("subject_id", readmitted="admitted")
    return (
        stays.join(following, on="subject_id")
        .filter((pl.col("readmitted") >= pl.col("discharged")) & (pl.col("readmitted") > pl.col("admitted")))
        .group_by("stay")
        .agg(pl.col("readmitted").min())
    )


def _still_in_hospital(stays: pl.DataFrame) -> pl.DataFrame:
    """(stay, elsewhere=True) of stays whose discharge falls into another stay of the subject that ends later."""
    others = stays.select("subject_id", other_admitted="admitted", other_discharged="discharged")
    return (
        stays.join(others, on="subject_id")
        .filter(pl.col("discharged").is_between("other_admitted", "other_discharged", closed="left"))
        .select("stay", elsewhere=True)
        .unique()
    )


def label_readmissions(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Readmission) -> Labels:
    """Is the subject's next admission at least so many minutes and at most so many days after the discharge day?

    Left out are, in this order: discharges by death (deaths often have no time of day, so a death on the discharge day
    counts as one); admissions on the discharge day itself, at the very moment of the discharge too (a transfer between
    hospitals), as the answer is known at the prediction time; discharges while another stay is open; and, unless the
    task counts them as negative, discharges whose days outlast the follow-up, whatever their outcome.

    Stays that overlap or nest (two records of one hospitalisation) end with the last of them: a discharge into another
    open stay leaves the patient in hospital, where there is nothing to come back to, so only the last one is labelled.
    Any admission counts as a readmission, one that was never closed too.
    """
    days = timedelta(days=task.at_most_days)
    stays = hospital_stays(events, profile).with_row_index("stay")
    discharges = (
        stays.with_columns(prediction_time=_end_of_day(pl.col("discharged")))
        .join(_next_admissions(events, profile, stays), on="stay", how="left")
        .join(_still_in_hospital(stays), on="stay", how="left")
        .join(deaths(events, profile), on="subject_id", how="left")
        .join(follow_up_ends(events, profile), on="subject_id", how="left")
    )
    day = pl.col("discharged").dt.date()
    # an admission after the death is a wrong date, or an organ donor's
    lived = pl.col("death").is_null() | (pl.col("readmitted") <= pl.col("death"))
    kept, left_out = _leave_out(
        discharges,
        {
            "discharged by death": pl.col("died") | (pl.col("death").dt.date() <= day),
            "readmitted on the discharge day": pl.col("readmitted").dt.date() == day,
            "discharged while another stay was open": pl.col("elsewhere"),
            **_censored(task.censored, task.at_most_days),
        },
    )
    wait = pl.col("readmitted") - pl.col("prediction_time")
    soon = (wait >= timedelta(minutes=task.at_least_minutes)) & (wait <= days) & lived
    labels = kept.select("subject_id", "prediction_time", boolean_value=soon.fill_null(False))
    return _finish(labels), left_out


def _grade(value: pl.Expr, task: Laboratory) -> pl.Expr:
    """How many of the thresholds the value is beyond: 0 normal, 1 mild, 2 moderate, 3 severe.

    Only the mild threshold can itself be abnormal (sodium of 135 is mild, but 130 is not yet moderate).
    """
    mild, *further = task.thresholds
    beyond = [{"at_most": value <= mild, "below": value < mild, "above": value > mild}[task.abnormal]]
    beyond += [value > threshold if task.abnormal == "above" else value < threshold for threshold in further]
    return pl.sum_horizontal([b.fill_null(False).cast(pl.Int64) for b in beyond])


def label_results(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Laboratory) -> Labels:
    """Is the result abnormal? Results in text count as normal, as in EHRSHOT; grade 0 is normal, 3 severe."""
    tests = codes_of(task.result, events["code"].unique(), codes)
    first = events.group_by("subject_id").agg(_first=pl.col("time").min())
    units = events["unit"].unique().drop_nulls()
    factors = [task.factor(unit) for unit in units]
    conversions = pl.DataFrame({"unit": units, "factor": factors}, schema={"unit": pl.String, "factor": pl.Float64})
    results = (
        events.filter(pl.col("code").is_in(list(tests)) & pl.col("time").is_not_null())
        .join(first, on="subject_id", maintain_order="left")
        .join(conversions, on="unit", how="left", maintain_order="left")
    )
    is_number = pl.col("numeric_value").is_finite().fill_null(False)
    is_text = (pl.col("text_value").str.len_bytes() > 0).fill_null(False)
    value = (pl.col("numeric_value").cast(pl.Float64) * pl.col("factor")).round_sig_figs(6)
    judged, left_out = _leave_out(
        results,
        {
            "at the subject's first event time": pl.col("time") == pl.col("_first"),
            "without a value": ~is_number & ~is_text,
            "in an unknown unit": is_number & pl.col("factor").is_null(),
        },
    )
    grade = pl.when(is_number).then(_grade(value, task)).otherwise(0)
    labels = judged.select(
        "subject_id",
        prediction_time=pl.col("time").dt.offset_by("-1m"),
        boolean_value=grade > 0,
        integer_value=grade,
    )
    return _finish(labels), left_out


def label_diagnoses(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Diagnosis) -> Labels:
    """Is the disease first diagnosed in the window after a discharge?

    Left out are discharges after the first diagnosis, and, unless the task counts them as negative, those whose window
    outlasts the follow-up, whatever was seen of it.
    """
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
        .join(deaths(events, profile), on="subject_id", how="left")
        .join(follow_up_ends(events, profile), on="subject_id", how="left")
    )
    more_than, at_most = (timedelta(days=d) for d in task.within_days)
    kept, left_out = _leave_out(
        discharges,
        {
            "after the first diagnosis": pl.col("_diagnosed") < pl.col("prediction_time"),
            **_censored(task.censored, task.within_days[1]),
        },
    )
    wait = pl.col("_diagnosed") - pl.col("prediction_time")
    labels = kept.select(
        "subject_id",
        "prediction_time",
        boolean_value=((wait > more_than) & (wait <= at_most)).fill_null(False),
    )
    return _finish(labels), left_out


def label_shard(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Definition) -> Labels:
    """The labels of one shard's subjects (subjects never span shards), and what was left out and why."""
    if isinstance(task, Stay):
        return label_stays(events, profile, codes, task)
    if isinstance(task, Icu):
        return label_icu_transfers(events, profile, codes, task)
    if isinstance(task, Readmission):
        return label_readmissions(events, profile, codes, task)
    if isinstance(task, Laboratory):
        return label_results(events, profile, codes, task)
    return label_diagnoses(events, profile, codes, task)
