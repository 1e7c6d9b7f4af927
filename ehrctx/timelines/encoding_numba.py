"""The loop over events of `encoding`, compiled: entries to tokens, between them the tokens that no event has alone."""

from __future__ import annotations

import numpy as np

from ehrctx.kernels import kernel

DAY = 86_400
# The columns of a plan, one row an entry, so that an event touches one line of memory.
PLAIN_FROM, PLAIN_TO, BINS_FROM, BINS_TO, STARTS_VISIT, ENDS_VISIT, WIDTH = range(7)
# What an event can meet here.
DROPPED_STATIC, PLAIN, BINNED = range(3)


@kernel(nogil=True)
def tokens_of(
    entry: np.ndarray,
    value: np.ndarray,
    seconds: np.ndarray,
    offsets: np.ndarray,
    n_static: np.ndarray,
    keep_static: bool,
    plan: np.ndarray,
    plain: np.ndarray,
    lower: np.ndarray,
    bin_token: np.ndarray,
    separate: bool,
    visit_start: int,
    gap_from: np.ndarray,
    first_gap: int,
    met: np.ndarray,
    lengths: np.ndarray,
    static_lengths: np.ndarray,
    out_token: np.ndarray,
    out_seconds: np.ndarray,
    out_event: np.ndarray,
) -> int:
    """Writes the tokens with their second and event to `out_*`, which have room enough, and returns how many they are.

    Adds the events to `met` [entry, what they met] and the tokens to `lengths` and `static_lengths` [subject].
    An entry's tokens without a value are plain[PLAIN_FROM:PLAIN_TO] of its row of `plan` [entry, 6]; its bins, if any,
    BINS_FROM:BINS_TO of `lower` and `bin_token` (-1: none). `separate` bins follow the plain tokens, others replace
    them. `visit_start` is the token, the next one the visit's end; `first_gap` that of `gap_from` (days) [0]; -1: none.
    """
    at = 0
    for subject in range(len(offsets) - 1):
        begun, before, first_row = at, np.int64(-1), offsets[subject]
        for row in range(first_row, offsets[subject + 1]):
            of_entry = plan[entry[row]]
            is_static = row - first_row < n_static[subject]
            if is_static and not keep_static:
                met[entry[row], DROPPED_STATIC] += 1
                continue
            of_bin = np.int64(-1)
            if of_entry[BINS_TO] > of_entry[BINS_FROM]:
                b, last = of_entry[BINS_FROM], of_entry[BINS_TO] - 1
                while b < last and value[row] >= lower[b + 1]:
                    b += 1
                of_bin = bin_token[b]
            met[entry[row], BINNED if of_bin >= 0 else PLAIN] += 1
            opens = visit_start >= 0 and of_entry[STARTS_VISIT] == 1 and not is_static
            closes = visit_start >= 0 and of_entry[ENDS_VISIT] == 1 and not is_static
            n_plain = 0 if of_bin >= 0 and not separate else of_entry[PLAIN_TO] - of_entry[PLAIN_FROM]
            if n_plain == 0 and of_bin < 0 and not opens and not closes:
                continue
            start = at
            if first_gap >= 0 and not is_static:
                days = (np.int64(seconds[row]) - before) // DAY if before >= 0 else 0
                if days >= gap_from[0]:
                    g = 0
                    while g + 1 < len(gap_from) and days >= gap_from[g + 1]:
                        g += 1
                    out_token[at] = first_gap + g
                    at += 1
                before = np.int64(seconds[row])
            if opens:
                out_token[at] = visit_start
                at += 1
            for k in range(of_entry[PLAIN_FROM], of_entry[PLAIN_FROM] + n_plain):
                out_token[at] = plain[k]
                at += 1
            if of_bin >= 0:
                out_token[at] = of_bin
                at += 1
            if closes:
                out_token[at] = visit_start + 1
                at += 1
            for k in range(start, at):
                out_seconds[k] = seconds[row]
                out_event[k] = row - first_row
            if is_static:
                static_lengths[subject] += at - start
        lengths[subject] += at - begun
    return at
