"""The loops over events of `counting`, compiled."""

from __future__ import annotations

import numpy as np

from ehrctx.kernels import kernel
from ehrctx.timelines.hashing_numba import SMALLEST, empty_table, place_of, table_of, twice_as_long

CODE, TEXT, NUMBER = range(3)
SIGN = np.uint32(0x80000000)


@kernel(nogil=True)
def entries_of(
    code: np.ndarray, has_value: np.ndarray, value: np.ndarray, unit: np.ndarray, text: np.ndarray,
    is_category: np.ndarray, n_codes: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Each event's entry (int32[n], numbered as they come), its value (float32[n], NaN unless its entry is a number),
    and the row where each entry is first (int64[k]).

    A number of a (code, unit), else a (code, text) if bool[texts] `is_category` says so of the text, else a code.
    """
    n = len(code)
    entry, of_number = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.float32)
    keys, first = np.empty(SMALLEST // 2, dtype=np.uint64), np.empty(SMALLEST // 2, dtype=np.int64)
    table = empty_table()
    # most codes have one unit, so the last entry of a code and kind is mostly the next one as well
    last_detail, last_entry = np.full(3 * n_codes, -1, dtype=np.int64), np.empty(3 * n_codes, dtype=np.int32)
    known = 0
    for row in range(n):
        kind, detail = CODE, 0
        of_number[row] = np.nan
        if has_value[row] and np.isfinite(value[row]):
            kind, detail = NUMBER, unit[row] + 1
            of_number[row] = value[row]
        elif text[row] >= 0 and is_category[text[row]]:
            kind, detail = TEXT, text[row] + 1
        slot = kind * n_codes + code[row]
        if last_detail[slot] != detail:
            key = np.uint64(kind) << np.uint64(62) | np.uint64(code[row]) << np.uint64(31) | np.uint64(detail)
            place = place_of(key, keys, table)
            if table[place] < 0:
                if known == len(keys):
                    table, keys, first = table_of(keys), twice_as_long(keys), twice_as_long(first)
                    place = place_of(key, keys, table)
                table[place], keys[known], first[known] = known, key, row
                known += 1
            last_detail[slot], last_entry[slot] = detail, table[place]
        entry[row] = last_entry[slot]
    return entry, of_number, first[:known].copy()


@kernel(nogil=True)
def tally(
    entry: np.ndarray, bits: np.ndarray, is_number: np.ndarray, offsets: np.ndarray, counted: np.ndarray, whole: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums over the subjects that are `counted` (bool[m]), each of whom weighs `whole`.

    Of each entry, weight and events (int64[entries]); of each distinct value of those that are `is_number`
    (bool[entries]), a key (uint64: the entry, then 32 bits in the order of the values), weight and events (int64).
    `bits` are those of the float32 values, as uint32[n].
    """
    weight, count = np.zeros(len(is_number), dtype=np.int64), np.zeros(len(is_number), dtype=np.int64)
    keys = np.empty(SMALLEST // 2, dtype=np.uint64)
    key_weight, key_count = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.int64)
    table = empty_table()
    known = 0
    for subject in range(len(offsets) - 1):
        if not counted[subject]:
            continue
        n = offsets[subject + 1] - offsets[subject]
        of_event = (whole + n // 2) // n
        for row in range(offsets[subject], offsets[subject + 1]):
            e = entry[row]
            weight[e] += of_event
            count[e] += 1
            if not is_number[e]:
                continue
            ordered = SIGN if bits[row] == SIGN else bits[row] ^ (np.uint32(0xFFFFFFFF) if bits[row] >= SIGN else SIGN)
            key = np.uint64(e) << np.uint64(32) | np.uint64(ordered)
            place = place_of(key, keys, table)
            if table[place] < 0:
                if known == len(keys):
                    table, keys = table_of(keys), twice_as_long(keys)
                    key_weight, key_count = twice_as_long(key_weight), twice_as_long(key_count)
                    place = place_of(key, keys, table)
                table[place], keys[known], key_weight[known], key_count[known] = known, key, 0, 0
                known += 1
            key_weight[table[place]] += of_event
            key_count[table[place]] += 1
    return weight, count, keys[:known].copy(), key_weight[:known].copy(), key_count[:known].copy()


@kernel(nogil=True)
def seconds_since(
    time: np.ndarray, static: int, offsets: np.ndarray, origin: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """Seconds since each subject's origin, rounded up (uint32[n]; 0 for static events and those before the origin), how
    many were before it, and the most seconds. `static` is the time of static events."""
    seconds = np.zeros(len(time), dtype=np.uint32)
    early, most = 0, 0
    for subject in range(len(offsets) - 1):
        for row in range(offsets[subject], offsets[subject + 1]):
            if time[row] == static:
                continue
            since = time[row] - origin[subject]
            if since < 0:
                early += 1
            else:
                rounded = (since + 999_999) // 1_000_000
                most = max(most, rounded)
                seconds[row] = rounded
    return seconds, early, most
