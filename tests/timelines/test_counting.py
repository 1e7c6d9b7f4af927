"""The compiled loops that count entries and values, against dicts; also beyond the first size of their tables."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.timelines.counting_numba import entries_of, tally
from ehrctx.timelines.hashing_numba import SMALLEST, add_up, factorize
from ehrctx.timelines.statistics import lower_bounds


def added_up(keys, weights, counts):
    """The distinct keys and their sums, added to nothing."""
    room = SMALLEST // 2
    empty = (np.empty(room, dtype=kind) for kind in (np.uint64, np.int64, np.int64))
    found, weight, count, known, _ = add_up(*empty, 0, np.full(SMALLEST, -1, dtype=np.int32), keys, weights, counts)
    return found[:known], weight[:known], count[:known]


many = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=60)


@given(many)
def test_factorize_against_a_dict(keys):
    ids, found = factorize(np.array(keys, dtype=np.uint64))
    assert found.tolist() == list(dict.fromkeys(keys))
    assert found[ids].tolist() == keys


@given(many)
def test_added_up_against_a_dict(keys):
    weights = [7 * i + 1 for i in range(len(keys))]
    found, weight, count = added_up(
        np.array(keys, dtype=np.uint64), np.array(weights, dtype=np.int64), np.ones(len(keys), dtype=np.int64)
    )
    expected = {}
    for key, more in zip(keys, weights, strict=True):
        sums = expected.setdefault(key, [0, 0])
        sums[0] += more
        sums[1] += 1
    assert dict(zip(found.tolist(), zip(weight.tolist(), count.tolist(), strict=True), strict=True)) == {
        key: tuple(sums) for key, sums in expected.items()
    }


def test_tables_grow():
    """Many times beyond their first size, with keys whose hashes are alike in part."""
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(150_000, dtype=np.uint64) << np.uint64(32), 2))
    ids, found = factorize(keys)
    assert len(found) == 150_000
    assert (found[ids] == keys).all()
    found, weight, count = added_up(keys, np.ones(len(keys), dtype=np.int64), np.full(len(keys), 3))
    assert len(found) == 150_000
    assert (weight == 2).all()
    assert (count == 6).all()


def test_entries_and_values_beyond_the_first_size_of_a_table():
    n = 100_000
    rng = np.random.default_rng(1)
    code, text = rng.integers(0, 50, n).astype(np.int32), rng.integers(-1, 2_000, n).astype(np.int32)
    has_value, value = rng.random(n) < 0.5, rng.normal(size=n).astype(np.float32)
    unit, is_category = rng.integers(-1, 2, n).astype(np.int32), np.arange(2_000) % 10 > 0
    entry, of_number, first = entries_of(code, has_value, value, unit, text, is_category, 50)
    described = [
        ("number", c, u) if h else ("text", c, t) if t >= 0 and is_category[t] else ("code", c)
        for c, h, u, t in zip(code.tolist(), has_value.tolist(), unit.tolist(), text.tolist(), strict=True)
    ]
    numbered = {what: number for number, what in enumerate(dict.fromkeys(described))}
    assert len(numbered) > 33_000
    assert entry.tolist() == [numbered[what] for what in described]
    assert [described[row] for row in first.tolist()] == list(numbered)
    assert np.array_equal(of_number, np.where(has_value, value, np.nan), equal_nan=True)
    is_number = np.array([what[0] == "number" for what in numbered])
    offsets, counted = np.arange(0, n + 1, 1_000), np.arange(n // 1_000) % 3 > 0
    weight, count, keys, key_weight, key_count = tally(
        entry, of_number.view(np.uint32), is_number, offsets, counted, 2_000
    )
    of_train = np.repeat(counted, 1_000)
    expected = np.bincount(entry[of_train], minlength=len(numbered))
    assert (count == expected).all()
    assert (weight == 2 * expected).all()
    values = {}
    for row in np.flatnonzero(of_train & has_value).tolist():
        what = int(entry[row]), float(value[row])
        values[what] = values.get(what, 0) + 1
    assert len(values) > 33_000
    cells = pl.DataFrame({"cell": keys.astype(np.uint32), "level": pl.Series([0] * len(keys), dtype=pl.UInt8)})
    found = zip((keys >> np.uint64(32)).tolist(), lower_bounds(cells).tolist(), strict=True)
    assert dict(zip(found, key_count.tolist(), strict=True)) == values
    assert (key_weight == 2 * key_count).all()
