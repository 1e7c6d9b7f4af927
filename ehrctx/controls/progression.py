"""The control of progression: the same subjects with and without it; what comes next must grow harder to tell.

Both cohorts share the seed, so subjects are pairs. In each bin of token positions a subject has a mean loss with
progression and one without; the slope of their difference over log2 of the position is fitted by least squares. The
first FIRST - 1 tokens are left out: how likely a window begins with a record's first events depends on lengths alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.statistics import Draws, Intervals
from ehrctx.robustness.progression import position_bins, read_token_losses
from ehrctx.study import Statistics

FEWEST_SUBJECTS = 20  # of a bin
BINS_PER_OCTAVE = 1
FIRST = 16


@dataclass(frozen=True)
class Slope:
    """Nats per doubling of the position; `table` has the difference by position (position_from, position_to,
    difference, lower, upper, n_subjects)."""

    value: float
    lower: float
    upper: float
    n_subjects: int
    table: pl.DataFrame


def _by_subject(losses: pl.DataFrame, edges: np.ndarray) -> pl.DataFrame:
    losses = losses.filter(pl.col("position") >= FIRST)
    place = np.searchsorted(edges, losses["position"].to_numpy(), side="right") - 1
    return losses.with_columns(bin=pl.Series(place)).group_by("subject_id", "bin").agg(pl.col("loss").mean())


def paired_slope(progressing: Path, steady: Path, statistics: Statistics) -> Slope:
    """The slope of the paired difference of two folders of token losses, with patient-level bootstrap intervals."""
    _, _, one = read_token_losses(progressing)
    _, _, other = read_token_losses(steady)
    edges = position_bins(int(min(one["position"].max(), other["position"].max())), BINS_PER_OCTAVE)  # type: ignore[type-var,arg-type]
    pairs = _by_subject(one, edges).join(_by_subject(other, edges), on=["subject_id", "bin"], suffix="_steady")
    pairs = pairs.filter(pl.col("bin") < len(edges) - 1, pl.len().over("bin") >= FEWEST_SUBJECTS)
    pairs = pairs.with_columns(difference=pl.col("loss") - pl.col("loss_steady")).sort("subject_id", "bin")
    if pairs["bin"].n_unique() < 2:
        raise InputError(
            "the token losses share too few positions for a slope. Simulate more subjects, or longer ones."
        )
    subjects, place = pairs["subject_id"].to_numpy(), pairs["bin"].to_numpy()
    x = np.log2(np.sqrt(edges[:-1] * (edges[1:] - 1)))[place]
    y = pairs["difference"].to_numpy()
    draws, intervals = Draws.of(subjects, statistics), Intervals(statistics.level)
    sums = draws.sums(np.column_stack([np.ones_like(x), x, y, x * y, x * x]), subjects)
    all_of_them = np.column_stack([np.ones_like(x), x, y, x * y, x * x]).sum(axis=0, keepdims=True)
    n = len(draws.ids)
    rows = []
    for number, (low, high) in enumerate(pairwise(edges)):
        inside = place == number
        if inside.any():
            value, drawn = draws.means(y[inside, None], subjects[inside])
            rows.append(
                (int(low), int(high) - 1, float(value[0]), *intervals.of(drawn[:, 0], inside.sum()), int(inside.sum()))
            )
    table = pl.DataFrame(
        rows, schema=["position_from", "position_to", "difference", "lower", "upper", "n_subjects"], orient="row"
    )
    return Slope(float(_slope(all_of_them)[0]), *intervals.of(_slope(sums), n), n, table)


def _slope(sums: np.ndarray) -> np.ndarray:
    """Of least squares, from the sums of 1, x, y, xy and x^2."""
    n, x, y, xy, xx = sums.T
    return (n * xy - x * y) / (n * xx - x * x)
