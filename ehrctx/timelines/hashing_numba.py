"""Open-addressing hash tables of 64-bit keys, compiled: some 10 ns a look-up, where sorting takes 100 and more."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

SMALLEST = 1 << 16
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing


@njit(cache=True, nogil=True)
def place_of(key: np.uint64, keys: np.ndarray, table: np.ndarray) -> Any:
    """Where in `table`, which holds positions in `keys`, `key` is or would be (there it holds -1)."""
    mask = len(table) - 1
    place = np.int64((key * GOLDEN) >> np.uint64(32)) & mask
    while table[place] >= 0 and keys[table[place]] != key:
        place = (place + 1) & mask
    return place


@njit(cache=True, nogil=True)
def empty_table() -> np.ndarray:
    """For up to half of SMALLEST keys."""
    return np.full(SMALLEST, -1, dtype=np.int32)


@njit(cache=True, nogil=True)
def table_of(keys: np.ndarray) -> np.ndarray:
    """A table of `keys` that has room for as many more."""
    table = np.full(4 * len(keys), -1, dtype=np.int32)
    for number in range(len(keys)):
        table[place_of(keys[number], keys, table)] = number
    return table


@njit(cache=True, nogil=True)
def twice_as_long(values: np.ndarray) -> np.ndarray:
    longer = np.empty(2 * len(values), dtype=values.dtype)
    longer[: len(values)] = values
    return longer


@njit(cache=True, nogil=True)
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


@njit(cache=True, nogil=True)
def added_up(keys: np.ndarray, weight: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct uint64 keys as they come, and the sums of their int64 weights and counts."""
    found, table = np.empty(SMALLEST // 2, dtype=np.uint64), empty_table()
    weights, counts = np.empty(len(found), dtype=np.int64), np.empty(len(found), dtype=np.int64)
    known = 0
    for row in range(len(keys)):
        place = place_of(keys[row], found, table)
        if table[place] < 0:
            if known == len(found):
                table, found = table_of(found), twice_as_long(found)
                weights, counts = twice_as_long(weights), twice_as_long(counts)
                place = place_of(keys[row], found, table)
            table[place], found[known], weights[known], counts[known] = known, keys[row], 0, 0
            known += 1
        weights[table[place]] += weight[row]
        counts[table[place]] += count[row]
    return found[:known].copy(), weights[:known].copy(), counts[:known].copy()
