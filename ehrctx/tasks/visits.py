"""Hospital stays: admissions tied to their discharges."""

from __future__ import annotations

import polars as pl

from ehrctx.events.profile import DatasetProfile, matches


def hospital_stays(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, admitted, discharged) of closed stays, in order; from the events of `read_shard`.

    A discharge belongs to the admission with the same `visit`; where the profile names no visit column, to the last
    admission since the discharge before it, if there is one. Admissions without a discharge are left out: their end is
    unknown.
    """
    marked = events.filter(pl.col("time").is_not_null()).select(
        "subject_id",
        "time",
        "visit",
        opens=matches(pl.col("code"), profile.admission),
        closes=matches(pl.col("code"), profile.discharge),
    )
    admissions = marked.filter("opens").select("subject_id", "visit", admitted="time")
    discharges = marked.filter("closes").select("subject_id", "visit", discharged="time")
    if profile.visit_column:
        opened = admissions.drop_nulls("visit").group_by("subject_id", "visit").agg(pl.col("admitted").min())
        closed = discharges.drop_nulls("visit").group_by("subject_id", "visit").agg(pl.col("discharged").max())
        stays = opened.join(closed, on=["subject_id", "visit"])
    else:
        turns = marked.filter(pl.col("opens") | pl.col("closes"))
        stays = (
            turns.with_columns(
                admitted=pl.col("time").shift(1).over("subject_id"), _opened=pl.col("opens").shift(1).over("subject_id")
            )
            .filter(pl.col("closes") & pl.col("_opened"))
            .select("subject_id", "admitted", discharged="time")
        )
    return (
        stays.filter(pl.col("discharged") >= pl.col("admitted"))
        .select("subject_id", "admitted", "discharged")
        .sort("subject_id", "admitted", "discharged")
    )
