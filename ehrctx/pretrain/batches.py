"""Which windows make which optimizer step: a pure function of (seed, step), the same for every architecture.

Subjects come from an endless stream of shuffled passes over the train split, the same stream for every context length;
each draw is a window with a uniform start. A pool of draws is sorted by length, cut into batches by token budget, and
the batches are shuffled: hardly any padding, patients kept apart. A step takes batches until its share of the tokens is
reached; what one step takes too much or too little, the next one evens out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ehrctx.study import Pretraining
from ehrctx.timelines.windows import Windows, batches_by_budget, pad

Batch = tuple[np.ndarray, np.ndarray]  # padded tokens int64[n, length], their lengths int64[n]

# Streams of random numbers drawn from one seed.
_SUBJECTS, _STARTS, _ORDER = range(3)


@dataclass(frozen=True)
class Step:
    """One optimizer step and its padded batches."""

    index: int
    batches: list[Batch]

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""
        return int(sum(lengths.sum() for _, lengths in self.batches))

    @property
    def padded_tokens(self) -> int:
        return sum(tokens.size for tokens, _ in self.batches)

    @property
    def predicted(self) -> int:
        """Tokens that are predicted: all but the first of each window."""
        return int(sum((lengths - 1).sum() for _, lengths in self.batches))


@dataclass(frozen=True)
class TrainingBatches:
    """The steps of one training. `subjects` are the store positions of the train split, int64[n]."""

    windows: Windows
    subjects: np.ndarray
    settings: Pretraining
    seed: int

    @property
    def n_steps(self) -> int:
        return max(1, round(self.settings.tokens / self.settings.tokens_per_step))

    @property
    def pool_windows(self) -> int:
        """A pool never spans more than one pass, so that small data sets are passed over evenly."""
        return min(self.settings.pool_windows, len(self.subjects))

    def _draws(self, first: int, n: int) -> np.ndarray:
        """Subjects of draws [first, first + n) of the endless stream of passes."""
        size = len(self.subjects)
        passes = range(first // size, (first + n - 1) // size + 1)
        stream = np.concatenate(
            [np.random.default_rng([self.seed, _SUBJECTS, p]).permutation(self.subjects) for p in passes]
        )
        offset = first - passes[0] * size
        return stream[offset : offset + n]

    def pool(self, index: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The shuffled batches (subjects, starts, lengths) of one pool."""
        n = self.pool_windows
        subjects = self._draws(index * n, n)
        starts = self.windows.training_starts(subjects, np.random.default_rng([self.seed, _STARTS, index]).random(n))
        lengths = self.windows.training_lengths(subjects)
        batches = batches_by_budget(lengths, min(self.settings.batch_tokens, self.settings.tokens_per_step))
        order = np.random.default_rng([self.seed, _ORDER, index]).permutation(len(batches))
        return [(subjects[b], starts[b], lengths[b]) for b in (batches[i] for i in order)]

    def _plan(self) -> Iterator[tuple[int, list[tuple[np.ndarray, np.ndarray]]]]:
        """Every step as (index, [(subjects, starts)]), without cutting windows."""
        step, taken, pool = 0, 0, 0
        current: list[tuple[np.ndarray, np.ndarray]] = []
        while True:
            for subjects, starts, lengths in self.pool(pool):
                n = int(lengths.sum())
                if current and taken + n / 2 > (step + 1) * self.settings.tokens_per_step:
                    yield step, current
                    step, current = step + 1, []
                    if step == self.n_steps:
                        return
                current.append((subjects, starts))
                taken += n
            pool += 1

    def steps(self, first: int = 0) -> Iterator[Step]:
        """Steps `first`, `first` + 1, … to the end of the budget. Steps before `first` cost only their plan."""
        for index, batches in self._plan():
            if index >= first:
                cut = [
                    pad([self.windows.training(int(s), int(at)) for s, at in zip(subjects, starts, strict=True)])
                    for subjects, starts in batches
                ]
                yield Step(index, cut)

    def coverage(self, steps: int) -> tuple[int, float]:
        """How many distinct subjects the first `steps` see, and how many windows there are for each train subject."""
        seen, windows = np.zeros(len(self.windows.timelines), dtype=bool), 0
        for _, batches in islice(self._plan(), steps):
            for subjects, _ in batches:
                seen[subjects] = True
                windows += len(subjects)
        return int(seen.sum()), windows / len(self.subjects)


def validation_batches(windows: Windows, subjects: np.ndarray, budget: int) -> Iterator[Batch]:
    """Padded batches that hold every token of `subjects` exactly once (besides [BOS] and the static prefix)."""
    which, starts = windows.consecutive(subjects)
    room = windows.room(which)
    offsets = windows.timelines.offsets
    rest = offsets[which + 1] - offsets[which] - (windows.context - 1 - room) + 1 - starts
    for batch in batches_by_budget(windows.context - room + np.minimum(room, rest), budget):
        yield pad([windows.training(int(s), int(at)) for s, at in zip(which[batch], starts[batch], strict=True)])
