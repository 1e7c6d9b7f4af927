"""Copy-forwarding: how much of a history repeats itself, as Context Clues (arXiv 2412.16178) measures it.

RR_n = (unique n-grams that occur more than once) / (unique n-grams), over overlapping n-grams of one subject's tokens.
"""

from __future__ import annotations

import numpy as np

N_MAX = 4


def repetition_rates(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """RR_1 .. RR_4 of the first `lengths[i]` tokens, float64[len(lengths), 4]; NaN where they hold no n-gram.

    `tokens` are ids [L], `lengths` int64 <= L. All prefixes share one pass: a prefix holds as many unique n-grams as
    first occurrences, and as many repeated ones as second occurrences, so sorting the positions of both is enough.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    out = np.full((len(lengths), N_MAX), np.nan)
    single = gram = np.asarray(tokens).astype(np.int64)
    for n in range(1, min(N_MAX, len(tokens)) + 1):
        if n > 1:
            # an n-gram is an (n-1)-gram and the token behind it; ranks < L keep the product far below 2^63
            gram = gram[:-1] * len(tokens) + single[n - 1 :]
        gram, first, second = _ranks(gram)
        if n == 1:
            single = gram
        last_start = lengths - n
        unique = np.searchsorted(first, last_start, side="right")
        repeated = np.searchsorted(second, last_start, side="right")
        np.divide(repeated, unique, out=out[:, n - 1], where=unique > 0)
    return out


def _ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each value's rank among the distinct ones, and in order the positions of first and of second occurrences."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.append(True, ordered[1:] != ordered[:-1])
    follows_first = ~new & np.append(False, new[:-1])
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[order] = np.cumsum(new) - 1
    return ranks, np.sort(order[new]), np.sort(order[follows_first])


def geometric_mean(rates: np.ndarray) -> np.ndarray:
    """Over the last axis: 0 if a rate is 0, NaN where a rate is NaN."""
    return np.prod(rates, axis=-1) ** (1 / rates.shape[-1])
