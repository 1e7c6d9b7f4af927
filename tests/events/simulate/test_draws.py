"""Random numbers by address: against SplitMix64 in plain integers, for uniformity and for independence."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ehrctx.events.simulate.draws import Draws

WORD = 2**64 - 1


def finalised(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & WORD
    return x ^ (x >> 31)


def splitmix_by_hand(seed, number, stream, *counters):
    """The same address in Python's integers."""
    state = 0
    for part in (seed, number):
        state = finalised((state + (part + 1) * 0x9E3779B97F4A7C15) & WORD)
    state = finalised(state ^ int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little"))
    for part in counters:
        state = finalised((state + (part + 1) * 0x9E3779B97F4A7C15) & WORD)
    return ((state >> 12) + 0.5) / 2**52


def test_the_finaliser_is_splitmix64s():
    """The first outputs of SplitMix64 with seed 0, as its authors' reference implementation prints them."""
    golden = 0x9E3779B97F4A7C15
    assert [finalised(golden * k & WORD) for k in (1, 2, 3)] == [
        0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F,
    ]  # fmt: skip


@given(
    st.integers(0, 2**31 - 1), st.integers(0, 2**40), st.text(max_size=8), st.lists(st.integers(0, 2**33), max_size=3)
)
def test_every_address_is_what_plain_integers_say(seed, number, stream, counters):
    drawn = Draws(seed, np.array([7, number])).uniform(stream, np.array([1]), *counters)
    assert drawn.tolist() == [splitmix_by_hand(seed, number, stream, *counters)]


def test_a_subject_draws_the_same_in_any_company():
    alone, among = Draws(3, np.array([41])), Draws(3, np.arange(100))
    assert alone.normal("gap", np.array([0]), np.arange(5)).tolist() == (
        among.normal("gap", np.array([41]), np.arange(5)).tolist()
    )


@pytest.mark.parametrize("axis", ["subject", "counter", "second counter", "stream", "seed"])
def test_uniform_and_without_correlation_along_every_axis(axis):
    n, zero = 200_000, np.zeros(1, dtype=int)
    draws = Draws(1, np.arange(n))
    u = {
        "subject": lambda: draws.uniform("a", np.arange(n)),
        "counter": lambda: draws.uniform("a", zero, np.arange(n)),
        "second counter": lambda: draws.uniform("a", zero, 5, np.arange(n)),
        "stream": lambda: np.concatenate([draws.uniform(f"stream {i}", zero) for i in range(20_000)]),
        "seed": lambda: np.concatenate([Draws(i, zero).uniform("a", zero) for i in range(20_000)]),
    }[axis]()
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) * np.sqrt(len(u)) < 3.9
    pairs = np.histogram2d(u[0::2], u[1::2], bins=20)[0].ravel()
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_its_distributions():
    rows = np.zeros(100_000, dtype=int)
    draws, counter = Draws(2, np.arange(1)), np.arange(100_000)
    assert stats.kstest(draws.normal("n", rows, counter), "norm").pvalue > 1e-3
    assert stats.kstest(draws.exponential("e", rows, counter), "expon").pvalue > 1e-3
    assert stats.chisquare(np.bincount(draws.choice("c", 7, rows, counter), minlength=7)).pvalue > 1e-3
