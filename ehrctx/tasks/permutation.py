"""A negative control: outcomes dealt out among subjects, so that no history has to do with what follows it."""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl

OUTCOMES = ("boolean_value", "integer_value")


def permuted(labels: pl.DataFrame, task: str, seed: int) -> pl.DataFrame:
    """The labels of a task, in order of subject and time, with the outcomes of other subjects.

    A permutation of the subjects says whose outcomes each one gets, all of them in order of time: outcomes stay as
    alike within a subject as they were. Who has more labels than there are outcomes gets these over again.
    """
    if labels.is_empty():
        return labels
    first = np.flatnonzero(np.diff(labels["subject_id"].to_numpy(), prepend=-1))
    counts = np.diff(first, append=labels.height)
    donor = np.random.default_rng([seed, zlib.crc32(task.encode())]).permutation(len(first))
    which = np.repeat(np.arange(len(first)), counts)
    number = np.arange(labels.height) - first[which]
    taken = first[donor[which]] + number % counts[donor[which]]
    return labels.with_columns(labels[name].gather(taken).alias(name) for name in OUTCOMES)
