"""Random numbers that are functions of what they are drawn for, not of when.

A number is a hash of (seed, subject, stream, counters). So a subject lives the same life in any shard, beside any
company, on any number of workers; and cohorts of one seed that differ in one parameter share every other draw, which
makes them pairs. Libraries' generators draw in sequence: one of them per subject and stream would cost 10 us each.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014; constants of Stafford's mix 13) after each
number that goes in. `tests/events/simulate/test_draws.py` puts it to tests of uniformity and independence.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.special import ndtri

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _mixed(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def _with(state: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The state after `number` (whole, not negative) went in."""
    return _mixed(state + (number.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


class Draws:
    """The random numbers of some subjects, addressed by their row.

    `numbers` (int64[n]) are what tells the subjects apart in the whole cohort. Each method takes the name of a stream,
    rows (int, any shape) and whole counters >= 0 that broadcast against them.
    """

    def __init__(self, seed: int, numbers: np.ndarray) -> None:
        with np.errstate(over="ignore"):
            self._keys = _with(_with(np.zeros(1, np.uint64), np.array([seed])), np.asarray(numbers))

    def uniform(self, stream: str, rows: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
        """Between 0 and 1, neither included."""
        name = np.frombuffer(hashlib.blake2b(stream.encode(), digest_size=8).digest(), np.uint64)
        with np.errstate(over="ignore"):
            state = _mixed(self._keys[rows] ^ name)
            for counter in counters:
                state = _with(state, np.asarray(counter))
        return ((state >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def normal(self, stream: str, rows: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
        """Standard normal."""
        return ndtri(self.uniform(stream, rows, *counters))

    def exponential(self, stream: str, rows: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
        """Of mean 1."""
        return -np.log(self.uniform(stream, rows, *counters))

    def choice(self, stream: str, n: np.ndarray | int, rows: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
        """A whole number below n; int64."""
        return (self.uniform(stream, rows, *counters) * n).astype(np.int64)
