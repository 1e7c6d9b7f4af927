"""Windows: the one contract by which training, validation and embedding cut timelines.

A window is [BOS], the static prefix (if the tokenizer keeps one), then consecutive tokens; the context length counts
them all. Training draws a uniform start and adds [EOS] only where the timeline really ends. Evaluation ends at the
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
        widest = int(self.timelines.subjects["n_static"].max(initial=0))
        if self.context < widest + 3:
            raise InputError(
                f"a context length of {self.context} leaves no room beside a static prefix of {widest} tokens. "
                f"Use a longer context, or `static_prefix: false` in the tokenizer spec."
            )

    def room(self, subjects: np.ndarray) -> np.ndarray:
        """How many timed tokens fit beside [BOS] and the static prefix; int64[n]."""
        return self.context - 1 - self.timelines.subjects["n_static"][subjects].astype(np.int64)

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
        body = np.append(self._body(subject), EOS)
        room = int(self.room(np.array([subject]))[0])
        return np.concatenate([[BOS], self._prefix(subject), body[start : start + room]]).astype(np.int64)

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
        prefix = self._prefix(subject)
        return np.concatenate([[BOS], prefix, self._body(subject)[start : visible - len(prefix)]]).astype(np.int64)

    def history(self, subject: int, visible: int) -> np.ndarray:
        """The window that ends with the subject's `visible`-th token, most recent tokens kept; int64[<= context]."""
        return self.between(subject, int(self.starts(np.array([subject]), np.array([visible]))[0]), visible)

    def _prefix(self, subject: int) -> np.ndarray:
        lo = self.timelines.offsets[subject]
        return self.timelines.tokens[lo : lo + int(self.timelines.subjects["n_static"][subject])]

    def _body(self, subject: int) -> np.ndarray:
        lo, hi = self.timelines.offsets[subject], self.timelines.offsets[subject + 1]
        return self.timelines.tokens[lo + int(self.timelines.subjects["n_static"][subject]) : hi]


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
