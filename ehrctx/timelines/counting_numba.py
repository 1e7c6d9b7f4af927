"""The loops over events of `counting`, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def factorize(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int32[n] that number the distinct uint64[n] `keys` as they come, and the row where each is first; int64[k].

    An open-addressing table of 32-bit numbers: some 5 ns an event where sorting (np.unique) takes 80.
    """
    size = 1 << 16
    table = np.full(size, -1, dtype=np.int32)
    first = np.empty(size, dtype=np.int64)
    ids = np.empty(len(keys), dtype=np.int32)
    known = 0
    for row in range(len(keys)):
        key = keys[row]
        place = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & (size - 1)
        while table[place] >= 0 and keys[first[table[place]]] != key:
            place = (place + 1) & (size - 1)
        if table[place] < 0:
            table[place] = known
            first[known] = row
            known += 1
            ids[row] = known - 1
            if 2 * known >= size:  # twice as large, and everybody finds a new place
                size *= 2
                table = np.full(size, -1, dtype=np.int32)
                grown = np.empty(size, dtype=np.int64)
                grown[:known] = first[:known]
                first = grown
                for number in range(known):
                    hashed = (keys[first[number]] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
                    place = np.int64(hashed) & (size - 1)
                    while table[place] >= 0:
                        place = (place + 1) & (size - 1)
                    table[place] = number
        else:
            ids[row] = table[place]
    return ids, first[:known].copy()


@njit(cache=True, nogil=True)
def sums(
    entry: np.ndarray, offsets: np.ndarray, counted: np.ndarray, n_entries: int, whole: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight, events and subjects of each entry (int64[n_entries]) over the subjects that are `counted` (bool[m])."""
    weight = np.zeros(n_entries, dtype=np.int64)
    count = np.zeros(n_entries, dtype=np.int64)
    subjects = np.zeros(n_entries, dtype=np.int64)
    last = np.full(n_entries, -1, dtype=np.int64)
    for subject in range(len(offsets) - 1):
        if not counted[subject]:
            continue
        n = offsets[subject + 1] - offsets[subject]
        of_event = (whole + n // 2) // n
        for row in range(offsets[subject], offsets[subject + 1]):
            e = entry[row]
            weight[e] += of_event
            count[e] += 1
            if last[e] != subject:
                last[e] = subject
                subjects[e] += 1
    return weight, count, subjects


@njit(cache=True, nogil=True)
def added_up(ids: np.ndarray, weight: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The sum of int64 `weight` and the number of rows of each id in [0, n); int64[n] each."""
    total, count = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for row in range(len(ids)):
        total[ids[row]] += weight[row]
        count[ids[row]] += 1
    return total, count


@njit(cache=True, nogil=True)
def seconds_since(
    time: np.ndarray, static: int, offsets: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """Seconds since each subject's origin, rounded up (int64[n]; 0 for static events and those before the origin), how
    many were before it, and the most seconds. `static` is the time of static events."""
    seconds = np.zeros(len(time), dtype=np.int64)
    early, most = 0, 0
    for subject in range(len(offsets) - 1):
        for row in range(offsets[subject], offsets[subject + 1]):
            if time[row] == static:
                continue
            since = time[row] - origin[subject]
            if since < 0:
                early += 1
            else:
                seconds[row] = (since + 999_999) // 1_000_000
                most = max(most, seconds[row])
    return seconds, early, most
