"""Until when a subject was observed, and when they died: what tells "did not happen" from "was not seen"."""

from __future__ import annotations

from datetime import datetime, time

import polars as pl

from ehrctx.events.profile import DatasetProfile, matches


def deaths(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, death): when those who died did so: the first death event, or discharge that says so."""
    found = events.filter(matches(pl.col("code"), (*profile.death, *profile.discharged_dead)))
    return found.group_by("subject_id").agg(death=pl.col("time").min())


def follow_up_ends(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, follow_up_end): the last moment at which an outcome would have been seen; null where only death
    ends the follow-up, or the profile does not say. A calendar date is followed to its last microsecond.
    """
    last = events.group_by("subject_id").agg(follow_up_end=pl.col("time").max())
    if profile.follow_up_end == "record_end":
        return last
    if profile.follow_up_end in ("death", None):
        return last.with_columns(follow_up_end=pl.lit(None, pl.Datetime("us")))
    day = datetime.fromisoformat(str(profile.follow_up_end))
    return last.with_columns(follow_up_end=pl.lit(datetime.combine(day, time.max), pl.Datetime("us")))


def outlasts_follow_up(horizon: pl.Expr) -> pl.Expr:
    """Whether what happens until `horizon` was not seen to its end, in a frame with `death` and `follow_up_end`.

    Who dies before the horizon was followed to the end. The outcome must not matter: leaving out only those in whom it
    was not seen in time would make every label of a short follow-up positive.
    """
    died_before = (pl.col("death") <= horizon).fill_null(False)
    return (horizon > pl.col("follow_up_end")) & ~died_before
