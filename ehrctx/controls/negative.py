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

    What rests on so few subjects that its smallest possible p would not survive the adjustment could not fail, so it is
    no test and has no adjusted p. Raises InputError where that is true of all, or too few draws make it so.
    """
    intervals, auroc = Intervals(statistics.level), SCORES.index("auroc")
    rows, smallest = [], []
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
            smallest.append(intervals.two_sided_p(np.ones(statistics.replicates), n))
    table, where = pl.DataFrame(rows, schema=SCHEMA, orient="row"), predictions[0].parent
    if 2 * len(rows) / (1 + statistics.replicates) >= (1 - statistics.level) / 2:
        raise InputError(
            f"{where}: {statistics.replicates:,} bootstrap draws could tell none of {len(rows)} AUROCs from chance, "
            f"adjusted. Set statistics.replicates to at least {round(4 * len(rows) / (1 - statistics.level)):,}."
        )
    tests = could_fail(np.array(smallest), 1 - statistics.level)
    if not tests.any():
        raise InputError(
            f"{where}: none of {len(rows)} AUROCs rests on enough held-out subjects to be told from chance, adjusted. "
            "Simulate more subjects, or hold out more of them."
        )
    p_holm = holm(np.where(tests, table["p"].to_numpy(), np.nan))
    return table.with_columns(p_holm=pl.Series(p_holm, dtype=pl.Float64))


def could_fail(smallest: np.ndarray, level: float) -> np.ndarray:
    """Which tests can be rejected at `level` once adjusted (Holm), given the smallest p that each can have; bool[n].

    The largest set of which each one could be the first to be rejected; NaN is no test.
    """
    p = np.nan_to_num(smallest, nan=1.0)
    candidates = np.unique(p)
    sizes = np.searchsorted(np.sort(p), candidates, side="right")
    return p <= candidates[candidates * sizes < level].max(initial=-1.0)


def excluded(table: pl.DataFrame, level: float) -> int:
    """How many adjusted intervals exclude .5."""
    return int((table["p_holm"].fill_null(np.nan).fill_nan(1.0) < 1 - level).sum())
