"""Until when a subject was observed, and when they died: what tells "did not happen" from "was not seen"."""

from __future__ import annotations

from datetime import datetime, time

import polars as pl

from ehrctx.events.profile import DatasetProfile, matches


def deaths(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, death): the time of the first death event of those who have one."""
    found = events.filter(matches(pl.col("code"), profile.death))
    return found.group_by("subject_id").agg(death=pl.col("time").min())


def follow_up_ends(events: pl.DataFrame, profile: DatasetProfile) -> pl.DataFrame:
    """(subject_id, follow_up_end): the last moment at which an admission would have been seen; null where only death
    ends the follow-up. A calendar date is followed to its last microsecond.
    """
    last = events.group_by("subject_id").agg(follow_up_end=pl.col("time").max())
    if profile.follow_up_end == "record_end":
        return last
    if profile.follow_up_end == "death":
        return last.with_columns(follow_up_end=pl.lit(None, pl.Datetime("us")))
    day = datetime.fromisoformat(str(profile.follow_up_end))
    return last.with_columns(follow_up_end=pl.lit(datetime.combine(day, time.max), pl.Datetime("us")))
