"""Ontology roll-up: codes that the vocabulary does not hold become their nearest ancestor that it holds."""

from __future__ import annotations

import polars as pl

from ehrctx.events.ontology import prefixes_of

NEAREST = {"code": pl.String, "ancestor": pl.String}


def ancestors_of(codes: pl.Series, parents: pl.DataFrame) -> pl.DataFrame:
    """(code, ancestor, distance): all ancestors of distinct `codes` by the edges `parents` (code, parent) and by the
    prefixes of ICD codes, each at its shortest distance."""
    edges = pl.concat([parents.select("code", "parent"), prefixes_of(codes)]).unique()
    found = pl.DataFrame({"code": codes, "ancestor": codes}, schema=NEAREST).with_columns(distance=pl.lit(0, pl.Int64))
    last = found
    while last.height:  # one level a turn, until nothing new is above
        above = last.join(edges.rename({"code": "ancestor"}), on="ancestor").select(
            "code", ancestor="parent", distance=pl.col("distance") + 1
        )
        last = above.unique(["code", "ancestor"]).join(found, on=["code", "ancestor"], how="anti")
        found = pl.concat([found, last])
    return found.filter(pl.col("distance") > 0)


def nearest(ancestors: pl.DataFrame, held: pl.DataFrame) -> pl.DataFrame:
    """(code, ancestor) of each code's nearest ancestor among `held` (code, count); the commoner one, then the first by
    name, of several as near."""
    return (
        ancestors.join(held.select(ancestor="code", count="count"), on="ancestor")
        .sort("code", "distance", -pl.col("count"), "ancestor")
        .unique("code", keep="first", maintain_order=True)
        .select("code", "ancestor")
    )


def rolled_up(entries: pl.DataFrame, parents: pl.DataFrame, fewer_than: int) -> pl.DataFrame:
    """`entries` (kind, code, unit, text, weight, count) in which rare codes are their ancestors, values and texts left.

    A code with fewer than `fewer_than` events becomes its nearest ancestor that, with all rare codes below it, is not
    rare. It is left as it is where there is none, or where the rare codes below it make it common enough itself.
    """
    totals = entries.group_by("code").agg(pl.col("count").sum())
    rare = totals.filter(pl.col("count") < fewer_than)
    above = ancestors_of(rare["code"], parents)
    below = above.join(rare, on="code").group_by("ancestor").agg(pl.col("count").sum())
    own = totals.rename({"code": "ancestor", "count": "own"})
    held = (
        below.join(own, on="ancestor", how="left")
        .select(code="ancestor", count=pl.col("count") + pl.col("own").fill_null(0))
        .filter(pl.col("count") >= fewer_than)
    )
    instead = nearest(above.join(held, on="code", how="anti"), held)
    moved = entries.join(instead, on="code").select(
        pl.lit("code").alias("kind"),
        pl.col("ancestor").alias("code"),
        pl.lit(None, pl.String).alias("unit"),
        pl.lit(None, pl.String).alias("text"),
        "weight",
        "count",
    )
    kept = entries.join(instead, on="code", how="anti").select(moved.columns)
    return pl.concat([kept, moved]).group_by("kind", "code", "unit", "text").agg(pl.col("weight", "count").sum())
