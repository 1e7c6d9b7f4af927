"""What guards a training: a loss that is not finite, or leaps, is noticed at once, with the batch it came from.

A step is a pure function of the seed and its index, so (step, batch) is enough to cut the same windows again:
`TrainingBatches.steps(first=step)`. No subject is named.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ehrctx.pretrain.batches import Batch

REMEMBERED = 50  # steps
FEWEST = 20  # steps before a leap can be told from noise
LEVEL = 10  # steps whose median is where the loss is now, on its way down
WIDTH = 8  # median changes from step to step above it: 7.6 standard deviations of normal noise
LEAST = 0.1  # of the level, for losses that hardly vary


def is_spike(loss: float, recent: Sequence[float]) -> bool:
    """Whether `loss` leaps far above the losses of the last steps (`recent`, oldest first)."""
    if len(recent) < FEWEST:
        return False
    level = statistics.median(recent[-LEVEL:])
    change = statistics.median(abs(after - before) for before, after in pairwise(recent))
    return loss > level + max(WIDTH * change, LEAST * level)


def remember(loss: float, recent: Sequence[float]) -> list[float]:
    """`recent` with `loss` at its end; a loss that stays high becomes the measure, and is no leap any more."""
    return [*recent, loss][-REMEMBERED:]


def describe_spikes(spikes: Sequence[tuple[int, float]], n_steps: int, choice: str) -> str:
    """One sentence on all spikes [step, loss] of a training of `n_steps`; `choice` is its `on_loss_spike`."""
    worst_step, worst_loss = max(spikes, key=lambda spike: spike[1])
    outcome = "their updates were left out" if choice == "skip" else "training went on"
    return (
        f"loss spikes at {len(spikes):,} of {n_steps:,} steps (the first at step {spikes[0][0]:,}, the highest, "
        f"{worst_loss:.2f} nats, at step {worst_step:,}): {outcome}."
    )


def suspect(batches: Sequence[Batch], losses: np.ndarray) -> str:
    """The batch that a step's loss came from, in words: not finite, else the highest mean of `losses` float64[n]."""
    means = losses / np.array([(lengths - 1).sum() for _, lengths in batches])
    worst = int(np.argmax(np.where(np.isfinite(means), means, np.inf)))
    rows, length = batches[worst][0].shape
    return f"batch {worst + 1} of {len(batches)} ({rows} window(s) of up to {length:,} tokens)"
