"""Repetition rates of all prefixes at once against counting tuples of each prefix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.robustness.repetition import N_MAX, geometric_mean, repetition_rates


def by_counting(tokens: list[int]) -> list[float]:
    rates = []
    for n in range(1, N_MAX + 1):
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        rates.append(sum(c > 1 for c in counts.values()) / len(counts) if counts else np.nan)
    return rates


@hypothesis_settings(max_examples=300)
@given(data=st.data(), kinds=st.integers(1, 8))
def test_every_prefix_is_counted_as_if_it_were_alone(data, kinds):
    tokens = data.draw(st.lists(st.integers(0, kinds).map(lambda t: t * 8_191), max_size=40))
    lengths = data.draw(st.lists(st.integers(0, len(tokens)), max_size=10))  # any order, repeated, none at all
    found = repetition_rates(np.array(tokens, dtype=np.uint16), np.array(lengths, dtype=np.int64))
    assert found.shape == (len(lengths), 4)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.array([by_counting(tokens[:n]) for n in lengths]).reshape(-1, 4))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_long_timeline_of_many_tokens(dtype):
    rng = np.random.default_rng(0)
    tokens = rng.integers(60_000, 65_536, size=30_000).astype(dtype)
    tokens[20_000:] = tokens[:10_000]  # a copied-forward block, so that 4-grams repeat
    lengths = np.array([30_000, 20_003, 20_004, 17])
    expected = [by_counting(tokens[:n].tolist()) for n in lengths]
    np.testing.assert_array_equal(repetition_rates(tokens, lengths), expected)
    assert expected[0][3] > 0.4
    assert expected[1][3] == 0 < expected[2][3]


def test_geometric_mean_of_zeros_and_undefined_rates():
    rates = np.array([[0.75, 0.75, 0.5, 0.25], [1, 1, 0, 1], [1, 1, 1, np.nan], [0, 0, 0, np.nan], [1, 1, 1, 1]])
    np.testing.assert_allclose(geometric_mean(rates), [0.0703125**0.25, 0, np.nan, np.nan, 1])
    assert geometric_mean(np.empty((0, 4))).shape == (0,)
