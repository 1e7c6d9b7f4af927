"""The control of progression: the same subjects with and without it; what comes next must grow harder to tell.

Both cohorts share the seed, so subjects are pairs, token position by token position. In each bin of positions a
subject has a mean difference in loss, with progression less without; its slope over log2 of the position is fitted by
least squares to the subjects who reach every bin, and to the bins that REACHED of all subjects reach: were those who
leave the panel unlike those who stay, a slope over all would be theirs. The first FIRST - 1 tokens are left out: how
likely a window begins with a record's first events depends on lengths alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.statistics import Draws, Intervals
from ehrctx.robustness.progression import position_bins, read_token_losses
from ehrctx.study import Statistics

FEWEST_SUBJECTS = 20
REACHED = 0.9
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


def _panel(progressing: Path, steady: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """(subject_id, bin, difference) of subjects who reach every bin, and the bins' edges int64[bins + 1]."""
    one, other = (read_token_losses(folder)[2] for folder in (progressing, steady))
    pairs = one.join(other, on=["subject_id", "position"], suffix="_steady")
    pairs = pairs.filter(pl.col("position") >= FIRST)
    n = pairs["subject_id"].n_unique()
    if n < FEWEST_SUBJECTS:
        raise InputError(
            f"{progressing} and {steady}: {n} subjects have token losses in both at position {FIRST} or later, fewer "
            f"than {FEWEST_SUBJECTS}. Simulate more subjects, or longer ones."
        )
    edges = position_bins(int(pairs["position"].max()), BINS_PER_OCTAVE)  # type: ignore[arg-type]
    place = np.searchsorted(edges, pairs["position"].to_numpy(), side="right") - 1
    means = (
        pairs.with_columns(bin=pl.Series(place))
        .group_by("subject_id", "bin")
        .agg(difference=(pl.col("loss") - pl.col("loss_steady")).mean())
    )
    kept = means.filter(pl.len().over("bin") >= REACHED * n)
    if (bins := kept["bin"].n_unique()) < 2:
        raise InputError(
            f"{progressing} and {steady}: token losses share too few positions for a slope. Simulate longer timelines."
        )
    return kept.filter(pl.len().over("subject_id") == bins).sort("subject_id", "bin"), edges


def paired_slope(progressing: Path, steady: Path, statistics: Statistics) -> Slope:
    """The slope of the paired difference of two folders of token losses, with patient-level bootstrap intervals.

    Raises InputError where too few subjects, or positions, are in both.
    """
    panel, edges = _panel(progressing, steady)
    ids, bins = panel["subject_id"].unique().sort().to_numpy(), panel["bin"].unique().sort().to_numpy()
    differences = panel["difference"].to_numpy().reshape(len(ids), len(bins))
    first, last = edges[bins], edges[bins + 1] - 1
    x = np.log2(np.sqrt(first * last))
    x -= x.mean()
    # all subjects have all bins, so that the slope over all is the mean of theirs
    own_slopes = differences @ x / (x @ x)
    values, drawn = Draws.of(ids, statistics).means(np.column_stack([own_slopes, differences]), ids)
    intervals = Intervals(statistics.level)
    limits = [intervals.of(column, len(ids)) for column in drawn.T]
    lower, upper = zip(*limits[1:], strict=True)
    table = pl.DataFrame(
        {
            "position_from": first,
            "position_to": last,
            "difference": values[1:],
            "lower": lower,
            "upper": upper,
            "n_subjects": len(ids),
        }
    )
    return Slope(float(values[0]), *limits[0], len(ids), table)
