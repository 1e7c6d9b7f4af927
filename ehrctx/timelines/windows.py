"""Windows: the one contract by which training, validation and embedding cut timelines.

A window is [BOS], the prefix, then consecutive tokens; the context length counts them all. The prefix is the static
tokens (if the tokenizer keeps them) and the age band of the window's first event (if it has age bands and the subject a
birth). Training draws a uniform start and adds [EOS] only where the timeline really ends. Evaluation ends at the
prediction time and keeps the most recent tokens that fit. The reference builds the two differently (specials and right
padding against none and left padding); here nothing differs but where a window ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ehrctx.errors import InputError
from ehrctx.timelines.spec import BOS, EOS, PAD
from ehrctx.timelines.store import Timelines


@dataclass(frozen=True)
class Windows:
    """All windows of one context length over a store. `subjects` are positions in the store's order throughout."""

    STEPS_OF_GRID: ClassVar[int] = 4  # in a window's room: what a label on the grid can lose is one of them

    timelines: Timelines
    context: int

    def __post_init__(self) -> None:
        widest = int(self._n_prefix(np.arange(len(self.timelines))).max(initial=0))
        if self.context < widest + 3:
            raise InputError(
                f"a context length of {self.context} leaves no room beside a prefix of {widest} tokens. Use a longer "
                f"context, or `static_prefix: false` in the tokenizer spec."
            )

    def room(self, subjects: np.ndarray) -> np.ndarray:
        """How many timed tokens fit beside [BOS] and the prefix; int64[n]."""
        return self.context - 1 - self._n_prefix(subjects)

    def _has_age(self, subjects: np.ndarray) -> np.ndarray:
        if self.timelines.first_age_token is None:
            return np.zeros(len(subjects), dtype=bool)
        return self.timelines.subjects["born"][subjects] & (self._timed(subjects) > 0)

    def _n_prefix(self, subjects: np.ndarray) -> np.ndarray:
        return self.timelines.subjects["n_static"][subjects].astype(np.int64) + self._has_age(subjects)

    def positions(self, subjects: np.ndarray, starts: np.ndarray, visible: np.ndarray) -> np.ndarray:
        """Where in the window that begins at timed token `starts` each subject's `visible`-th token is; int64[n].

        Without a visible timed token it is the last static one, or [BOS]: the age of an event to come is not read.
        """
        timed = visible > self.timelines.subjects["n_static"][subjects]
        return visible - starts + (self._has_age(subjects) & timed)

    def _timed(self, subjects: np.ndarray) -> np.ndarray:
        offsets = self.timelines.offsets
        total = offsets[subjects + 1] - offsets[subjects]
        return total - self.timelines.subjects["n_static"][subjects].astype(np.int64)

    def training_lengths(self, subjects: np.ndarray) -> np.ndarray:
        """Length of a training window of each subject (any start has the same); int64[n]."""
        room = self.room(subjects)
        return self.context - room + np.minimum(self._timed(subjects) + 1, room)

    def training_starts(self, subjects: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A start for each subject from `uniform` float64[n] in [0, 1); int64[n]."""
        choices = np.maximum(self._timed(subjects) + 1 - self.room(subjects), 0) + 1
        return np.minimum((uniform * choices).astype(np.int64), choices - 1)

    def training(self, subject: int, start: int) -> np.ndarray:
        """The window of one subject that begins at timed token `start`; int64[<= context]."""
        prefix, timed = self._prefix(subject, start), self._body(subject)[start:]
        room = self.context - 1 - len(prefix)
        return _joined(prefix, timed[:room], ends=len(timed) < room)

    def consecutive(self, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(subject, start) of windows that cover every token of `subjects`, and their [EOS], exactly once."""
        room, body = self.room(subjects), self._timed(subjects) + 1
        n = -(-body // room)
        which = np.repeat(np.arange(len(subjects)), n)
        nth = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
        return subjects[which], nth * room[which]

    def starts(self, subjects: np.ndarray, visible: np.ndarray, on_grid: bool = False) -> np.ndarray:
        """The timed token at which the window of each visible history begins; int64[n].

        0 for all that fit, so that those of one subject are prefixes of one another. Where a history outgrows the
        window, its most recent tokens that fit; `on_grid`, the window begins at a multiple of a quarter of the room, at
        the first that leaves the end in the window, so that histories that end near one another are prefixes, too.
        """
        beyond = np.maximum(visible - self.timelines.subjects["n_static"][subjects] - self.room(subjects), 0)
        step = np.maximum(self.room(subjects) // self.STEPS_OF_GRID, 1) if on_grid else 1
        return -(-beyond // step) * step

    def between(self, subject: int, start: int, visible: int) -> np.ndarray:
        """The window from timed token `start` to the subject's `visible`-th token; int64[<= context]."""
        timed = self._body(subject)[start : visible - int(self.timelines.subjects["n_static"][subject])]
        prefix = self._prefix(subject, start) if len(timed) else self._static(subject)
        return _joined(prefix, timed)

    def history(self, subject: int, visible: int) -> np.ndarray:
        """The window that ends with the subject's `visible`-th token, most recent tokens kept; int64[<= context]."""
        return self.between(subject, int(self.starts(np.array([subject]), np.array([visible]))[0]), visible)

    def _static(self, subject: int) -> np.ndarray:
        lo = self.timelines.offsets[subject]
        return self.timelines.tokens[lo : lo + int(self.timelines.subjects["n_static"][subject])]

    def _prefix(self, subject: int, start: int) -> np.ndarray:
        """Of a window that begins at timed token `start`; [EOS] alone counts as the last event."""
        static = self._static(subject)
        if self.timelines.first_age_token is None or not self._has_age(np.array([subject]))[0]:
            return static
        first = int(self.timelines.offsets[subject]) + len(static) + start
        seconds = int(self.timelines.seconds[min(first, int(self.timelines.offsets[subject + 1]) - 1)])
        return np.append(static, self.timelines.age_token(seconds))

    def _body(self, subject: int) -> np.ndarray:
        lo, hi = self.timelines.offsets[subject], self.timelines.offsets[subject + 1]
        return self.timelines.tokens[lo + int(self.timelines.subjects["n_static"][subject]) : hi]


def _joined(prefix: np.ndarray, timed: np.ndarray, ends: bool = False) -> np.ndarray:
    """[BOS], the prefix, timed tokens and, where the timeline `ends`, [EOS]; int64."""
    window = np.empty(1 + len(prefix) + len(timed) + ends, dtype=np.int64)
    window[0] = BOS
    window[1 : 1 + len(prefix)] = prefix
    window[1 + len(prefix) : 1 + len(prefix) + len(timed)] = timed
    if ends:
        window[-1] = EOS
    return window


def pad(windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Windows padded on the right: tokens int64[n, longest] and lengths int64[n]."""
    lengths = np.array([len(w) for w in windows], dtype=np.int64)
    tokens = np.full((len(windows), int(lengths.max())), PAD, dtype=np.int64)
    for row, window in zip(tokens, windows, strict=True):
        row[: len(window)] = window
    return tokens, lengths


def batches_by_budget(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Positions of windows in ascending length, cut so that rows x longest row <= `budget` (or a single row)."""
    order = np.argsort(lengths, kind="stable")
    batches, first = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or (i + 1 - first) * lengths[order[i]] > budget:
            batches.append(order[first:i])
            first = i
    return batches
