"""When the simulated subjects see a doctor: a self-exciting renewal process per subject.

The intensity t days after the last visit is r + (E / D) exp(-t / D): r is the base rate per day, E what earlier visits
still bring about (each visit adds `offspring`, which fades with time constant D), as in Hawkes' process (Biometrika
1971). Regularity comes from the clock: on the time scale of the cumulative intensity, gaps are Weibull of mean 1 with
the subject's own shape, where 1 gives Hawkes' process itself and more gives clockwork (a modulated renewal process: Cox
1972). Over long records the mean rate is r / (1 - offspring) whatever the shape, so shape and rate vary apart.
"""

from __future__ import annotations

import numpy as np
from scipy.special import gamma, wrightomega

from ehrctx.events.simulate import parameters as chosen
from ehrctx.events.simulate.people import YEAR, People

OPENS, HOURS = 8.0, 9.0  # of the clinics
MINUTES = 1440


def to_minute(days: np.ndarray) -> np.ndarray:
    """Rounded down to the minute."""
    return np.floor(days * MINUTES + 1e-6) / MINUTES


def opening_hours(days: np.ndarray) -> np.ndarray:
    """The same days in the same order, at a minute at which clinics are open."""
    day = np.floor(days)
    return to_minute(day + (OPENS + HOURS * (days - day)) / 24)


def weibull(u: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """The Weibull distribution's upper quantiles, scaled to the mean 1."""
    return (-np.log(u)) ** (1 / shape) / gamma(1 + 1 / shape)


def gap_of(hazard: np.ndarray, rate: np.ndarray, excess: np.ndarray, constant: float) -> np.ndarray:
    """The time g at which the cumulative hazard rate * g + excess * (1 - exp(-g / constant)) reaches `hazard`.

    With c = (hazard - excess) / rate and g = c + constant * y, it is y exp(y) = excess / (rate * constant) *
    exp(-c / constant), which is Wright's omega of the logarithm.
    """
    with np.errstate(divide="ignore"):
        c = (hazard - excess) / rate
        y = wrightomega(np.log(excess / (rate * constant)) - c / constant)
    return np.where(excess > 0, c + constant * y, hazard / rate)


def visit_times(people: People, visits: chosen.Visits) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Routine visits from the first day to the end of each record: rows, numbers in the subject, times; in order."""
    active = np.arange(len(people))
    time, excess = people.start.copy(), np.full(len(people), visits.offspring)
    end = people.end
    found = [(active, time)]
    number = 1
    while len(active):
        rate = people.visit_rate[active] * (1 + visits.burden * people.diagnosed_at(active, time))
        base = np.minimum(rate, visits.most) * (1 - visits.offspring) / YEAR
        hazard = weibull(people.draws.uniform("gap", active, number), people.gap_shape[active])
        gap = gap_of(hazard, base, excess, visits.offspring_days)
        time = time + gap
        excess = excess * np.exp(-gap / visits.offspring_days) + visits.offspring
        goes_on = time < end[active]
        active, time, excess = active[goes_on], time[goes_on], excess[goes_on]
        found.append((active, time))
        number += 1
    rows = np.concatenate([rows for rows, _ in found])
    times = np.concatenate([times for _, times in found])
    numbers = np.repeat(np.arange(len(found)), [len(rows) for rows, _ in found])
    order = np.lexsort((numbers, rows))
    return rows[order], numbers[order], opening_hours(times[order])
