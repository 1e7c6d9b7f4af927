"""Hospital stays: admissions tied to their discharges."""

from __future__ import annotations

import polars as pl

from ehrctx.events.profile import DatasetProfile, matches


def admissions(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, visit, admitted) of every admission, whether or not its stay was ever closed.

    The first admission event of a visit opens it; the later ones are moves within it. Without a visit, each counts.
    """
    opened = events.filter(pl.col("time").is_not_null() & matches(pl.col("code"), profile.admission)).select(
        "subject_id", "visit", admitted="time"
    )
    first = opened.drop_nulls("visit").group_by("subject_id", "visit").agg(pl.col("admitted").min())
    return pl.concat([first, opened.filter(pl.col("visit").is_null())])


def hospital_stays(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, visit, admitted, discharged, died) of closed stays, in order; from the events of `read_shard`.

    A discharge belongs to the admission with the same `visit`; where the profile names no visit column, to the last
    admission since the discharge before it, if there is one. Admissions without a discharge are left out: their end is
    unknown. `died`: a discharge code of the stay says so.
    """
    if profile.visit_column:
        closed = (
            events.filter(pl.col("time").is_not_null() & matches(pl.col("code"), profile.discharge))
            .drop_nulls("visit")
            .group_by("subject_id", "visit")
            .agg(discharged=pl.col("time").max(), died=matches(pl.col("code"), profile.discharged_dead).any())
        )
        stays = admissions(events, profile).join(closed, on=["subject_id", "visit"])
    else:
        turns = events.filter(pl.col("time").is_not_null()).select(
            "subject_id",
            "time",
            "visit",
            opens=matches(pl.col("code"), profile.admission),
            closes=matches(pl.col("code"), profile.discharge),
            died=matches(pl.col("code"), profile.discharged_dead),
        )
        stays = (
            turns.filter(pl.col("opens") | pl.col("closes"))
            .with_columns(
                admitted=pl.col("time").shift(1).over("subject_id"), _opened=pl.col("opens").shift(1).over("subject_id")
            )
            .filter(pl.col("closes") & pl.col("_opened"))
            .rename({"time": "discharged"})
        )
    return (
        stays.filter(pl.col("discharged") >= pl.col("admitted"))
        .select("subject_id", "visit", "admitted", "discharged", "died")
        .sort("subject_id", "admitted", "discharged")
    )
