"""A negative control: outcomes dealt out among subjects, so that no history has to do with what follows it."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl

OUTCOMES = ("boolean_value", "integer_value")


def permuted(labels: pl.DataFrame, task: str, seed: int) -> pl.DataFrame:
    """The labels of a task, in order of subject and time, with the outcomes of other subjects.

    In a random circle of the subjects each one gets the next one's outcomes, from a random one of them on, over and
    over again. So outcomes stay as alike within a subject as they were, nobody keeps their own (unless nobody else is
    there), and how many labels came before one tells nothing about its outcome.
    """
    if labels.is_empty():
        return labels
    first = np.flatnonzero(np.diff(labels["subject_id"].to_numpy(), prepend=-1))
    counts = np.diff(first, append=labels.height)
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    circle = rng.permutation(len(first))
    donor = np.empty_like(circle)
    donor[circle] = np.roll(circle, -1)
    start = rng.integers(0, counts[donor])
    which = np.repeat(np.arange(len(first)), counts)
    number = np.arange(labels.height) - first[which] + start[which]
    taken = first[donor[which]] + number % counts[donor[which]]
    return labels.with_columns(labels[name].gather(taken).alias(name) for name in OUTCOMES)
