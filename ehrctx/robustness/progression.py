"""Disease progression: perplexity by the position of a token in its timeline.

As a disease progresses, more problems are active and what comes next is harder to guess; context helps against it. The
study plots, for each position, the median over subjects of exp(loss), smoothed. Here positions are gathered in
log-spaced bins, which need no smoothing, with patient-level intervals; apart for tokens that the timeline holds for the
first time and tokens that repeat an earlier one, as copy-forwarding makes the latter easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.errors import refuse_repeated
from ehrctx.probe.statistics import Intervals, subject_draws
from ehrctx.study import Perplexity, Statistics

KIND = "token losses"
KINDS = ("all", "first", "repeat")
_CELLS = 8_000_000  # replicates x subjects held at once
_BLOCKS = 256

SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "position_from": pl.Int64,
    "position_to": pl.Int64,
    "kind": pl.String,
    "median": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "n": pl.Int64,
    "n_subjects": pl.Int64,
}


def position_bins(longest: int, per_octave: int) -> np.ndarray:
    """Increasing first positions of the bins, int64: powers of 2^(1 / per_octave), rounded; the last is > longest."""
    steps = int(np.ceil(np.log2(max(longest, 1) + 1) * per_octave)) + 1
    edges = np.unique(np.round(2.0 ** (np.arange(steps + 1) / per_octave)).astype(np.int64))
    return edges[: int(np.searchsorted(edges, longest, side="right")) + 1]


def bootstrap_medians(values: np.ndarray, subject: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """The median of `values` float64[n] in each replicate, float64[replicates]: the smallest value that half of what
    was drawn does not exceed; NaN where nothing was.

    `draws` [replicates, subjects] says how often a replicate counts each subject, `subject` int64[n] whose a value is.
    Sorted values are taken in blocks: sums over subjects tell in which one the median is, and only that one is counted.
    """
    order = np.argsort(values, kind="stable")
    values, subject = values[order], subject[order]
    n_blocks = int(np.clip(np.sqrt(len(values)), 1, _BLOCKS))
    starts = np.linspace(0, len(values), n_blocks + 1).astype(np.int64)
    block = np.repeat(np.arange(n_blocks), np.diff(starts))
    held = np.bincount(subject * n_blocks + block, minlength=draws.shape[1] * n_blocks).reshape(-1, n_blocks)
    rows = max(1, _CELLS // max(1, draws.shape[1]))
    parts = [draws[first : first + rows] for first in range(0, len(draws), rows)]
    return np.concatenate([_medians(values, subject, starts, held.astype(np.float64), part) for part in parts])


def _medians(
    values: np.ndarray, subject: np.ndarray, starts: np.ndarray, held: np.ndarray, draws: np.ndarray
) -> np.ndarray:
    """`held` float64[subjects, blocks]: how many values of each subject a block holds, from `starts` on."""
    of_blocks = draws.astype(np.float64) @ held
    cumulative = of_blocks.cumsum(axis=1)
    half = cumulative[:, -1] / 2
    reached_in = (cumulative >= half[:, None]).argmax(axis=1)
    found = np.full(len(draws), np.nan)
    for block in np.unique(reached_in[half > 0]):
        rows = np.flatnonzero((reached_in == block) & (half > 0))
        inside = slice(starts[block], starts[block + 1])
        before = cumulative[rows, block] - of_blocks[rows, block]
        reached = before[:, None] + draws[np.ix_(rows, subject[inside])].cumsum(axis=1, dtype=np.int64)
        found[rows] = values[inside][(reached >= half[rows, None]).argmax(axis=1)]
    return found


def perplexity_by_position(losses: pl.DataFrame, settings: Perplexity, statistics: Statistics) -> pl.DataFrame:
    """(position_from, position_to, kind, median, lower, upper, n, n_subjects) of one model's token losses.

    `losses` holds subject_id, position, repeat, loss (nats). Bins under the minimum of tokens or subjects are left out.
    The median over tokens of exp(loss), with a patient-level bootstrap interval; the draws are shared by all bins.
    """
    columns = {name: dtype for name, dtype in SCHEMA.items() if name != "model"}
    if losses.is_empty():
        return pl.DataFrame(schema=columns)
    ids, subject = np.unique(losses["subject_id"].to_numpy(), return_inverse=True)
    position, repeat = losses["position"].to_numpy(), losses["repeat"].to_numpy()
    perplexity = np.exp(losses["loss"].to_numpy().astype(np.float64))
    draws, intervals = subject_draws(ids, statistics), Intervals(statistics.level)
    edges = position_bins(int(position.max()), settings.bins_per_octave)
    rows = []
    for low, high in pairwise(edges):
        inside = (position >= low) & (position < high)
        for kind in KINDS:
            chosen = inside if kind == "all" else inside & (repeat == (kind == "repeat"))
            of = subject[chosen]
            n_subjects = len(np.unique(of))
            if len(of) < settings.minimum_tokens or n_subjects < settings.minimum_subjects:
                continue
            lower, upper = intervals.of(bootstrap_medians(perplexity[chosen], of, draws), n_subjects)
            median = float(np.median(perplexity[chosen]))
            rows.append((int(low), int(high) - 1, kind, median, lower, upper, len(of), n_subjects))
    return pl.DataFrame(rows, schema=columns, orient="row")


def read_token_losses(folder: Path) -> tuple[str, dict[str, Any], pl.DataFrame]:
    """The model's id, the facts (window, stride, subjects …) and the losses that `ehrctx perplexity` wrote."""
    manifest = read_manifest(folder, KIND)
    return manifest["settings"]["model"], manifest["facts"], pl.read_parquet(Path(folder) / "losses.parquet")


def perplexity_table(folders: Sequence[Path], settings: Perplexity, statistics: Statistics) -> pl.DataFrame:
    """`perplexity_by_position` of all models, as SCHEMA. Raises InputError if a model is given twice."""
    frames = [pl.DataFrame(schema=SCHEMA)]
    read = [read_token_losses(folder) for folder in folders]
    refuse_repeated([model for model, _, _ in read], "the token losses")
    for model, _, losses in read:
        table = perplexity_by_position(losses, settings, statistics)
        frames.append(table.with_columns(model=pl.lit(model)).select([pl.col(c).cast(t) for c, t in SCHEMA.items()]))
    return pl.concat(frames)
