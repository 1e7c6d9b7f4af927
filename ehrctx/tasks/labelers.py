"""From events to labels, one function per family of tasks (context-clues: EHRSHOT's definitions).

Each judges all its candidates, the prediction times that may have a label, in one frame in order of subject and time:
subject_id int64, prediction_time datetime[us], left_out (the reason why there is no label; null: there is one),
boolean_value and integer_value (a grade, for laboratory tasks) where there is one, and beside them what the judgement
rests on. Labels, counts and explanations are read off this frame. Where several reasons apply, the first counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
NORMAL_IN_WORDS = ("normal", "adequate")  # EHRSHOT's
UNKNOWN_UNIT = "in an unknown unit"
SAME_DAY_STAY = pl.col("admitted").dt.date() == pl.col("discharged").dt.date()


def _end_of_day(time: pl.Expr) -> pl.Expr:
    """23:59:00 of the day of `time`."""
    return time.dt.truncate("1d").dt.offset_by("23h59m")


def first_reason(reasons: dict[str, pl.Expr]) -> pl.Expr:
    """The first of `reasons` that applies, as an Enum of all of them; null where none does (null does not apply)."""
    found = pl.coalesce(pl.when(applies).then(pl.lit(name)) for name, applies in reasons.items())
    return found.cast(pl.Enum(list(reasons)))


def _judged(
    candidates: pl.DataFrame,
    reasons: dict[str, pl.Expr],
    positive: pl.Expr,
    evidence: Sequence[str],
    grade: pl.Expr | None = None,
) -> pl.DataFrame:
    """The judgement of each candidate; an answer that is null is no."""
    has_label = pl.col("left_out").is_null()
    return (
        candidates.with_columns(left_out=first_reason(reasons))
        .select(
            "subject_id",
            "prediction_time",
            "left_out",
            *evidence,
            boolean_value=pl.when(has_label).then(positive.fill_null(False)),
            integer_value=pl.when(has_label).then(pl.lit(None) if grade is None else grade).cast(pl.Int64),
        )
        .sort("subject_id", "prediction_time", maintain_order=True)
    )


def labels_of(judged: pl.DataFrame) -> pl.DataFrame:
    """LABEL_SCHEMA of the candidates that have a label."""
    return judged.filter(pl.col("left_out").is_null()).select(LABEL_SCHEMA.keys())


def reasons_of(judged: pl.DataFrame) -> Counter[str]:
    """How many candidates were left out for which reason, in the order in which they apply."""
    reasons = judged.schema["left_out"].categories.to_list()  # type: ignore[attr-defined]
    return Counter(dict.fromkeys(reasons, 0) | Counter(judged["left_out"].drop_nulls().to_list()))


def _censored(rule: Censored, days: float) -> dict[str, pl.Expr]:
    """The reason to leave out horizons of so many days after the prediction time, unless the rule judges them all."""
    if rule == "negative":
        return {}
    horizon = pl.col("prediction_time") + timedelta(days=days)
    return {f"followed for less than {days:g} days": outlasts_follow_up(horizon)}


def judge_stays(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Stay) -> pl.DataFrame:
    """Is the stay at least so many days long (discharge minus admission, to the second)?"""
    length = pl.col("discharged") - pl.col("admitted")
    return _judged(
        hospital_stays(events, profile).with_columns(prediction_time=_end_of_day(pl.col("admitted")), length=length),
        {"discharged on the admission day": SAME_DAY_STAY},
        length >= pl.duration(days=task.at_least_days),
        ("admitted", "discharged", "length"),
    )


def _first_transfers(events: pl.DataFrame, profile: DatasetProfile, stays: pl.DataFrame) -> pl.DataFrame:
    """(stay, transferred): the first ICU admission of each stay that has one, by the stay's row number.

    An ICU admission belongs to the stay of its visit; where it or the stay has none, to the stays that it falls into.
    """
    icu = events.filter(matches(pl.col("code"), profile.icu_admission))
    pairs = stays.join(icu.select("subject_id", transferred="time", icu_visit="visit"), on="subject_id")
    same_visit = pl.col("icu_visit") == pl.col("visit")  # null where one has none
    within = pl.col("transferred").is_between("admitted", "discharged")
    return pairs.filter(pl.coalesce(same_visit, within)).group_by("stay").agg(pl.col("transferred").min())


def judge_icu_transfers(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Icu) -> pl.DataFrame:
    """Does the patient come to intensive care after the admission day and before the stay ends?

    Who is there on the admission day already (or was before it, in the same visit) is left out, even when a second
    transfer follows: so the first transfer decides.
    """
    stays = hospital_stays(events, profile).with_row_index("stay")
    transfers = _first_transfers(events, profile, stays)
    return _judged(
        stays.join(transfers, on="stay", how="left").with_columns(prediction_time=_end_of_day(pl.col("admitted"))),
        {
            "discharged on the admission day": SAME_DAY_STAY,
            "in intensive care by the admission day": pl.col("transferred").dt.date() <= pl.col("admitted").dt.date(),
        },
        pl.col("transferred") <= pl.col("discharged"),
        ("admitted", "discharged", "transferred"),
    )


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


def judge_readmissions(
    events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Readmission
) -> pl.DataFrame:
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
    wait = pl.col("readmitted") - pl.col("prediction_time")
    return _judged(
        discharges,
        {
            "discharged by death": pl.col("died") | (pl.col("death").dt.date() <= day),
            "readmitted on the discharge day": pl.col("readmitted").dt.date() == day,
            "discharged while another stay was open": pl.col("elsewhere"),
            **_censored(task.censored, task.at_most_days),
        },
        (wait >= timedelta(minutes=task.at_least_minutes)) & (wait <= days) & lived,
        ("admitted", "discharged", "readmitted", "death", "follow_up_end"),
    )


def _grade(value: pl.Expr, task: Laboratory) -> pl.Expr:
    """How many of the thresholds the value is beyond: 0 normal, 1 mild, 2 moderate, 3 severe.

    Only the mild threshold can itself be abnormal (sodium of 135 is mild, but 130 is not yet moderate).
    """
    mild, *further = task.thresholds
    beyond = [{"at_most": value <= mild, "below": value < mild, "above": value > mild}[task.abnormal]]
    beyond += [value > threshold if task.abnormal == "above" else value < threshold for threshold in further]
    return pl.sum_horizontal([b.fill_null(False).cast(pl.Int64) for b in beyond])


def _finite(value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_finite()).then(value)


def judge_results(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Laboratory) -> pl.DataFrame:
    """Is the result abnormal? Grade 0 is normal, 3 severe.

    As in EHRSHOT, a number may be written as text, "normal" and "adequate" are normal, and other words (a sample that
    could not be read, "<20") have no grade.
    """
    tests = codes_of(task.result, events["code"].unique(), codes)
    first = events.group_by("subject_id").agg(_first=pl.col("time").min())
    units = events["unit"].unique().drop_nulls()
    factors = [task.factor(unit) for unit in units]
    conversions = pl.DataFrame({"unit": units, "factor": factors}, schema={"unit": pl.String, "factor": pl.Float64})
    words = pl.col("text_value").str.strip_chars().str.to_lowercase().replace("", None)
    number = pl.coalesce(
        _finite(pl.col("numeric_value").cast(pl.Float64)), _finite(words.cast(pl.Float64, strict=False))
    )
    is_number, value = pl.col("numeric_value").is_not_null(), pl.col("value")
    results = (
        events.filter(pl.col("code").is_in(list(tests)) & pl.col("time").is_not_null())
        .join(first, on="subject_id", maintain_order="left")
        .join(conversions, on="unit", how="left", maintain_order="left")
        .with_columns(prediction_time=pl.col("time").dt.offset_by("-1m"), numeric_value=number, _words=words)
        .with_columns(value=(pl.col("numeric_value") * pl.col("factor")).round_sig_figs(6))
        .with_columns(_grade=pl.when(is_number).then(_grade(value, task)).otherwise(0))
    )
    return _judged(
        results,
        {
            "at the subject's first event time": pl.col("time") == pl.col("_first"),
            "without a value": ~is_number & pl.col("_words").is_null(),
            "in words that say no grade": ~is_number & ~pl.col("_words").is_in(NORMAL_IN_WORDS),
            UNKNOWN_UNIT: is_number & pl.col("factor").is_null(),
        },
        pl.col("_grade") > 0,
        ("time", "code", "numeric_value", "text_value", "unit", "value"),
        grade=pl.col("_grade"),
    )


def judge_diagnoses(
    events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Diagnosis
) -> pl.DataFrame:
    """Is the disease first diagnosed in the window after a discharge?

    Left out are discharges after the first diagnosis, and, unless the task counts them as negative, those whose window
    outlasts the follow-up, whatever was seen of it.
    """
    disease = codes_of(task.diagnosis, events["code"].unique(), codes)
    first = (
        events.filter(pl.col("code").is_in(list(disease)) & pl.col("time").is_not_null())
        .group_by("subject_id")
        .agg(diagnosed=pl.col("time").min(), code=pl.col("code").get(pl.col("time").arg_min()))
    )
    discharges = (
        hospital_stays(events, profile)
        .with_columns(prediction_time=_end_of_day(pl.col("discharged")))
        .join(first, on="subject_id", how="left")
        .join(deaths(events, profile), on="subject_id", how="left")
        .join(follow_up_ends(events, profile), on="subject_id", how="left")
    )
    more_than, at_most = (timedelta(days=d) for d in task.within_days)
    wait = pl.col("diagnosed") - pl.col("prediction_time")
    return _judged(
        discharges,
        {
            "after the first diagnosis": pl.col("diagnosed") < pl.col("prediction_time"),
            **_censored(task.censored, task.within_days[1]),
        },
        (wait > more_than) & (wait <= at_most),
        ("admitted", "discharged", "diagnosed", "code", "death", "follow_up_end"),
    )


def judge(events: pl.DataFrame, profile: DatasetProfile, codes: pl.DataFrame, task: Definition) -> pl.DataFrame:
    """All candidates of some whole subjects, judged; `codes` are the metadata that lead from codes to concepts."""
    if isinstance(task, Stay):
        return judge_stays(events, profile, codes, task)
    if isinstance(task, Icu):
        return judge_icu_transfers(events, profile, codes, task)
    if isinstance(task, Readmission):
        return judge_readmissions(events, profile, codes, task)
    if isinstance(task, Laboratory):
        return judge_results(events, profile, codes, task)
    return judge_diagnoses(events, profile, codes, task)
