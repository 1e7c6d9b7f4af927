"""Open-addressing hash tables of 64-bit keys, compiled: some 10 ns a look-up, where sorting takes 100 and more."""

from __future__ import annotations

from typing import Any

import numpy as np

from ehrctx.kernels import kernel

SMALLEST = 1 << 16
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing


@kernel(nogil=True)
def place_of(key: np.uint64, keys: np.ndarray, table: np.ndarray) -> Any:
    """Where in `table`, which holds positions in `keys`, `key` is or would be (there it holds -1)."""
    mask = len(table) - 1
    place = np.int64((key * GOLDEN) >> np.uint64(32)) & mask
    while table[place] >= 0 and keys[table[place]] != key:
        place = (place + 1) & mask
    return place


@kernel(nogil=True)
def empty_table() -> np.ndarray:
    """For up to half of SMALLEST keys."""
    return np.full(SMALLEST, -1, dtype=np.int32)


@kernel(nogil=True)
def table_of(keys: np.ndarray) -> np.ndarray:
    """A table of `keys` that has room for as many more."""
    table = np.full(4 * len(keys), -1, dtype=np.int32)
    for number in range(len(keys)):
        table[place_of(keys[number], keys, table)] = number
    return table


@kernel(nogil=True)
def twice_as_long(values: np.ndarray) -> np.ndarray:
    longer = np.empty(2 * len(values), dtype=values.dtype)
    longer[: len(values)] = values
    return longer


@kernel(nogil=True)
def factorize(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64[n] that numbers the distinct uint64[n] `keys` as they come, and these; uint64[k]."""
    ids = np.empty(len(keys), dtype=np.int64)
    found, table = np.empty(SMALLEST // 2, dtype=np.uint64), empty_table()
    known = 0
    for row in range(len(keys)):
        if row and keys[row] == keys[row - 1]:
            ids[row] = ids[row - 1]
            continue
        place = place_of(keys[row], found, table)
        if table[place] < 0:
            if known == len(found):
                table, found = table_of(found), twice_as_long(found)
                place = place_of(keys[row], found, table)
            table[place], found[known] = known, keys[row]
            known += 1
        ids[row] = table[place]
    return ids, found[:known].copy()


@kernel(nogil=True)
def add_up(
    keys: np.ndarray, weights: np.ndarray, counts: np.ndarray, known: int, table: np.ndarray,
    new_keys: np.ndarray, new_weights: np.ndarray, new_counts: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, np.ndarray]:  # fmt: skip
    """Adds int64 weights and counts of `new_keys` (uint64) to those of the first `known` of `keys`, in place.

    Returns the same five: longer where there was no room, with keys that were new after the others.
    """
    for row in range(len(new_keys)):
        place = place_of(new_keys[row], keys, table)
        if table[place] < 0:
            if known == len(keys):
                table, keys = table_of(keys), twice_as_long(keys)
                weights, counts = twice_as_long(weights), twice_as_long(counts)
                place = place_of(new_keys[row], keys, table)
            table[place], keys[known], weights[known], counts[known] = known, new_keys[row], 0, 0
            known += 1
        weights[table[place]] += new_weights[row]
        counts[table[place]] += new_counts[row]
    return keys, weights, counts, known, table
