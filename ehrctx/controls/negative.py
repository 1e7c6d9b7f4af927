"""The negative control: with outcomes dealt out among subjects, no model may predict anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.statistics import SCORES, Draws, Intervals, holm
from ehrctx.study import Statistics

SCHEMA: dict[str, Any] = {
    "task": pl.String,
    "model": pl.String,
    "head": pl.String,
    "auroc": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "n_subjects": pl.Int64,
}


def chance_table(predictions: Sequence[Path], statistics: Statistics) -> pl.DataFrame:
    """SCHEMA: every task, model and head on all labels; p of "the AUROC is .5", adjusted (Holm) for being one of all.

    Not tested (no interval, no p) is what rests on fewer than two subjects of a class. Raises InputError where so few
    draws are made that the smallest p they can give would not survive the adjustment: such a control could not fail.
    """
    intervals, auroc = Intervals(statistics.level), SCORES.index("auroc")
    rows = []
    for folder in predictions:
        model, found, _ = read_predictions(folder)
        frame = found.filter(pl.col("split") == "held_out", pl.col("k") == "all").collect()
        draws = Draws.of(frame["subject_id"].to_numpy(), statistics)  # shared, as in every other table
        for (task, head), own in frame.partition_by("task", "head", as_dict=True, maintain_order=True).items():
            y, ids = own["y"].to_numpy(), own["subject_id"].to_numpy()
            one, drawn = draws.scores(y, own["p"].to_numpy(), ids)
            n, replicates = intervals.subjects(y, ids), drawn[:, auroc]
            p = intervals.two_sided_p(replicates - 0.5, n)
            rows.append((task, model, head, float(one[auroc]), *intervals.of(replicates, n), p, None, n))
    table = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    tested = int(np.isfinite(table["p"].to_numpy()).sum())
    if 2 * tested / (1 + statistics.replicates) >= (1 - statistics.level) / 2:
        raise InputError(
            f"{statistics.replicates:,} bootstrap draws could tell none of {tested} AUROCs from chance once adjusted. "
            f"Set statistics.replicates to at least {round(4 * tested / (1 - statistics.level)):,}."
        )
    return table.with_columns(p_holm=pl.Series(holm(table["p"].to_numpy()), dtype=pl.Float64))


def excluded(table: pl.DataFrame, level: float) -> int:
    """How many adjusted intervals exclude .5."""
    return int((table["p_holm"].fill_null(np.nan).fill_nan(1.0) < 1 - level).sum())
