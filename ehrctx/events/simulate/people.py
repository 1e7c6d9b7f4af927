"""Who the simulated subjects are: habits, chronic diseases and their pace, and when they decline.

Times are float64 days since 1970, inf where something never happens; rates are per year.

*Diseases.* Disease j of a subject of frailty f (one of FRAILTIES) moves from stage s to s + 1 with hazard
f * rates[j][s] from the age of ADULT on, times `progression` once the record began. So what comes depends on the stage
alone, not on how long it lasts (the chain is Markov).

*Decline.* Alive when the record begins, a subject of age a declines with hazard
deaths * f * (AGEING * exp(SENESCENCE * (a - 60)) + sum over j of deaths[j] by stage): Gompertz's law and Aalen's
additive hazards. Whoever is in hospital dies there and then; else a last stay follows (TERMINAL of cases), or death at
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from ehrctx.events.simulate.clinic import TESTS
from ehrctx.events.simulate.diseases import DIAGNOSED, DISEASES
from ehrctx.events.simulate.draws import Draws
from ehrctx.events.simulate.parameters import Parameters

YEAR = 365.25
FOLLOW_UP_END = float((np.datetime64("2025-01-01") - np.datetime64("1970-01-01")).astype(int))
ADULT = 18.0
FRAILTIES, FRAILTY_SHARES = np.array([0.5, 1.0, 2.0]), (0.4, 0.4, 0.2)
AGEING, SENESCENCE = 0.006, 0.085
TERMINAL = 0.7
TREATED = 0.75
OWN_LEVEL = 0.6  # standard deviation of a subject's own level of a test

RATES = np.array([disease.rates for disease in DISEASES.values()])
DEATHS = np.array([disease.deaths for disease in DISEASES.values()])


@dataclass(frozen=True)
class People:
    """n subjects; `stages` float64[n, diseases, 3] are the times at which they reach stage 1, 2 and 3."""

    draws: Draws
    subject_id: np.ndarray
    level: np.ndarray
    female: np.ndarray
    birth: np.ndarray
    start: np.ndarray
    frailty: np.ndarray
    demand: np.ndarray
    copy_rate: np.ndarray
    gap_shape: np.ndarray
    visit_rate: np.ndarray
    progression: np.ndarray
    stages: np.ndarray
    treated: np.ndarray
    own_levels: np.ndarray
    decline: np.ndarray

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def end(self) -> np.ndarray:
        """When the record ends at the latest, but for a last stay."""
        return np.minimum(self.decline, FOLLOW_UP_END)

    def stage_at(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """The stage of each disease; int8[len(rows), diseases]."""
        return (self.stages[rows] <= times[:, None, None]).sum(axis=2, dtype=np.int8)

    def diagnosed_at(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """How many diseases are diagnosed; int64[len(rows)]."""
        return (self.stages[rows, :, DIAGNOSED - 1] <= times[:, None]).sum(axis=1)


def ageing(birth: np.ndarray, since: np.ndarray, until: np.ndarray) -> np.ndarray:
    """Gompertz's cumulative hazard between two times, frailty and factors left out."""

    def risen(time: np.ndarray) -> np.ndarray:
        return np.exp(SENESCENCE * ((time - birth) / YEAR - 60.0))

    return AGEING / SENESCENCE * (risen(until) - risen(since))


def _stages(
    draws: Draws, rows: np.ndarray, birth: np.ndarray, start: np.ndarray, frailty: np.ndarray, progression: np.ndarray
) -> np.ndarray:
    """A chain of exponential times runs on a clock that turns `progression` times as fast once the record began."""
    items = np.arange(len(RATES))[None, :, None], np.arange(3)[None, None, :]
    waits = draws.exponential("stage", rows[:, None, None], *items) / (RATES[None] * frailty[:, None, None])
    reached = np.cumsum(waits, axis=2) * YEAR
    adult = birth + ADULT * YEAR
    before = (start - adult)[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        after = (reached - before) / progression[:, None, None]
    return np.where(reached <= before, adult[:, None, None] + reached, start[:, None, None] + after)


def _decline(
    draws: Draws,
    rows: np.ndarray,
    birth: np.ndarray,
    start: np.ndarray,
    frailty: np.ndarray,
    stages: np.ndarray,
    deaths: float,
) -> np.ndarray:
    """When the cumulative hazard reaches an exponential draw; inf if not before the end of the follow-up."""
    threshold = draws.exponential("decline", rows) / (frailty * deaths) if deaths else np.full(len(rows), np.inf)
    added = np.stack([DEATHS[:, 0], DEATHS[:, 1] - DEATHS[:, 0]], axis=1) / YEAR

    def hazard(time: np.ndarray) -> np.ndarray:
        since = np.maximum(stages[:, :, 1:], start[:, None, None])
        lasted = np.maximum(time[:, None, None] - since, 0.0)
        return ageing(birth, start, time) + np.einsum("njs,js->n", lasted, added)

    low, high = start.copy(), np.full(len(rows), FOLLOW_UP_END)
    lives = hazard(high) < threshold
    for _ in range(40):  # bisection, to less than a millisecond
        middle = (low + high) / 2
        later = hazard(middle) < threshold
        low, high = np.where(later, middle, low), np.where(later, high, middle)
    return np.where(lives, np.inf, high)


def _shares(mean: float, spread: float, u: np.ndarray) -> np.ndarray:
    """Quantiles of the beta distribution of that mean and standard deviation."""
    if not spread:
        return np.full(len(u), mean)
    total = mean * (1 - mean) / spread**2 - 1
    return betaincinv(mean * total, (1 - mean) * total, u)


def people_of(parameters: Parameters, seed: int, first: int, last: int) -> People:
    """The subjects numbered first to last - 1 of the cohort; their ids are one more.

    With levels, as many subjects as there are levels share all their draws, and each is at a level of its own.
    """
    number = np.arange(first, last)
    rows = np.arange(last - first)
    values = np.array(parameters.levels.values if parameters.levels else (np.nan,))
    level = values[number % len(values)]
    draws = Draws(seed, number // len(values))

    def planted(name: str, otherwise: np.ndarray) -> np.ndarray:
        return level.copy() if parameters.levels and parameters.levels.property == name else otherwise

    longest, shortest = parameters.record_years, parameters.shortest_record_years
    start = FOLLOW_UP_END - YEAR * shortest * (longest / shortest) ** draws.uniform("record", rows)
    youngest, oldest = parameters.age
    age = youngest + (oldest - youngest) * _shares(0.5, 0.25, draws.uniform("age", rows))
    birth = np.floor(start - YEAR * age)
    frailty = FRAILTIES[np.searchsorted(np.cumsum(FRAILTY_SHARES[:-1]), draws.uniform("frailty", rows))]
    visits = parameters.visits
    demand = draws.normal("demand", rows)
    rate = visits.rate * np.exp(visits.rate_spread * demand) * np.sqrt(frailty)
    shape = visits.gap_shape * np.exp(visits.gap_shape_spread * draws.normal("gap shape", rows))
    copying = _shares(parameters.copy_rate, parameters.copy_rate_spread, draws.uniform("copy rate", rows))
    progression = planted("progression", np.full(len(rows), parameters.progression))
    stages = _stages(draws, rows, birth, start, frailty, progression)
    items = np.arange(len(DISEASES))[None]
    return People(
        draws=draws,
        subject_id=number + 1,
        level=level,
        female=draws.uniform("sex", rows) < 0.53,
        birth=birth,
        start=start,
        frailty=frailty,
        demand=demand,
        copy_rate=planted("copy_rate", copying),
        gap_shape=planted("gap_shape", np.clip(shape, 0.2, 12.0)),
        visit_rate=planted("visit_rate", np.minimum(rate, visits.most)),
        progression=progression,
        stages=stages,
        treated=draws.uniform("treated", rows[:, None], items) < TREATED,
        own_levels=OWN_LEVEL * draws.normal("own level", rows[:, None], np.arange(len(TESTS))[None]),
        decline=_decline(draws, rows, birth, start, frailty, stages, parameters.deaths),
    )
