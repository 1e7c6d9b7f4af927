"""What the simulator knows of each label: its probability given the full state at the prediction time.

The state holds all that was drawn up to then: habits, stages of diseases, a stay's severity, what admitted, the cause.
What comes is integrated out. As all clocks of `stays` and `people` run side by side, memoryless or with a known hazard,
this is exact up to quadrature (below 1e-4) and the rounding of times to minutes.

Of decline, which competes with everything, the survival factorises over diseases: for each, the chain of stages with
killing by `deaths` has survival exp(Q t) 1, tabulated by day. With rates r1, r2 of a disease, the time from stage 1 to
the diagnosis has density r2 exp(-r2 t), from stage 0 r1 r2 / (r2 - r1) (exp(-r1 t) - exp(-r2 t)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.linalg import expm
from scipy.special import ndtr, ndtri

from ehrctx.events.simulate import parameters as chosen
from ehrctx.events.simulate.cause import Episodes
from ehrctx.events.simulate.clinic import DISEASE_OF
from ehrctx.events.simulate.diseases import DIAGNOSED, NAMES, PRECLINICAL
from ehrctx.events.simulate.people import DEATHS, FOLLOW_UP_END, RATES, TERMINAL, YEAR, People, ageing
from ehrctx.events.simulate.record import Expected, timestamps
from ehrctx.events.simulate.stays import BY_SEVERITY, LENGTH, SPREAD, TERMINATED, Stays, admission_rate

DAYS = 366
END_OF_DAY = 1439 / 1440
NODES, WEIGHTS = (part / 2 for part in np.polynomial.legendre.leggauss(16))
NODES = NODES + 0.5  # on (0, 1)
LONG_STAY, READMISSION_DAYS = 7.0, 30


@dataclass(frozen=True)
class Survival:
    """Whether subjects are spared from decline: `logs` float64[paces, diseases, stages, DAYS + 1] by pace and day."""

    logs: np.ndarray
    pace: np.ndarray  # of each subject: its place in `logs`
    deaths: float

    @classmethod
    def of(cls, people: People, deaths: float) -> Survival:
        """Subjects of the same frailty and progression have the same pace."""
        paces, pace = np.unique(np.stack([people.frailty, people.progression]), axis=1, return_inverse=True)
        logs = np.zeros((paces.shape[1], len(RATES), 4, DAYS + 1))
        for place, (frailty, progression) in enumerate(paces.T):
            for disease in range(len(RATES)):
                rates = RATES[disease] * frailty * progression / YEAR
                killed = np.array([0.0, 0.0, *DEATHS[disease]]) * frailty * deaths / YEAR
                generator = np.diag(rates, 1) - np.diag(np.append(rates, 0.0) + killed)
                day, alive = expm(generator), np.ones(4)
                for number in range(1, DAYS + 1):
                    alive = day @ alive
                    logs[place, disease, :, number] = np.log(alive)
        return cls(logs, np.ravel(pace), deaths)

    def at(
        self,
        people: People,
        rows: np.ndarray,
        since: np.ndarray,
        stage: np.ndarray,
        after: np.ndarray,
        without: int | None = None,
    ) -> np.ndarray:
        """The chance of no decline within `after` days (float64[n, k]) of `since`; disease `without` left out."""
        days = np.clip(after, 0, DAYS)
        below = np.minimum(days.astype(np.int64), DAYS - 1)
        part = days - below
        total = (
            -self.deaths
            * people.frailty[rows, None]
            * ageing(people.birth[rows, None], since[:, None], since[:, None] + days)
        )
        for disease in range(len(RATES)):
            if disease != without:
                logs = self.logs[self.pace[rows], disease, stage[:, disease]]
                one = np.take_along_axis(logs, below, axis=1)
                total += one + part * (np.take_along_axis(logs, below + 1, axis=1) - one)
        return np.exp(total)


def discharge_day(stays: Stays) -> np.ndarray:
    """23:59 of the day of each discharge."""
    return np.floor(stays.discharged) + END_OF_DAY


def length_survival(severity: np.ndarray, days: np.ndarray | float) -> np.ndarray:
    """The chance that a stay lasts so many days, if nothing ends it."""
    return ndtr((LENGTH + BY_SEVERITY * severity - np.log(days)) / SPREAD)


def _after_midnight(stays: Stays) -> tuple[np.ndarray, np.ndarray]:
    """Days from each admission to midnight, and from there to the end of the follow-up."""
    midnight = np.floor(stays.admitted) + 1
    return midnight - stays.admitted, FOLLOW_UP_END - midnight


def _in_hospital(people: People, survival: Survival, stays: Stays, left: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chances that stays last at least so many days from midnight on, `left` float64[n, k], and of no decline."""
    midnight, severity = _after_midnight(stays)[0][:, None], stays.severity[:, None]
    lasts = length_survival(severity, midnight + left) / length_survival(severity, midnight)
    time = np.floor(stays.admitted) + END_OF_DAY
    spared = survival.at(people, stays.rows, time, people.stage_at(stays.rows, time), left)
    return lasts, np.where((stays.reason == TERMINATED)[:, None], 1.0, spared)


def long_stay(people: People, survival: Survival, stays: Stays) -> np.ndarray:
    """Chances (float64[stays]) at the end of the admission day of 7 days or more in hospital.

    Of stays that end within the follow-up.
    """
    midnight, until_end = _after_midnight(stays)
    week = LONG_STAY - midnight
    lasts, spared = _in_hospital(people, survival, stays, np.stack([week, until_end], axis=1))
    on = lasts * spared
    return np.where(week < until_end, on[:, 0] - on[:, 1], 0.0) / (1 - on[:, 1])


def transfer(people: People, survival: Survival, stays: Stays) -> np.ndarray:
    """Chances (float64[stays]) at the end of the admission day of intensive care later in the stay.

    Of stays that end within the follow-up.

    1 - E exp(-q D), where q is the hazard and D when the stay ends: its length or the decline, whose hazard is constant
    enough over a stay.
    """
    midnight, until_end = _after_midnight(stays)
    q = stays.transfer_rate[:, None]

    def declines(left: np.ndarray, spared: np.ndarray) -> np.ndarray:
        """Whether, of decline and transfer, decline comes first, and within so many days."""
        hazard = -np.log(spared) / left
        return hazard / (q + hazard) * -np.expm1(-(q + hazard) * left)

    over, spared = _in_hospital(people, survival, stays, until_end[:, None])
    avoided_by_decline = over * declines(until_end[:, None], spared)
    still_open = over * spared
    lasts = length_survival(stays.severity, midnight)[:, None] * (1 - (1 - over) * NODES)
    length = np.exp(LENGTH + BY_SEVERITY * stays.severity[:, None] - SPREAD * ndtri(lasts))
    left = np.maximum(length - midnight[:, None], 1 / 1440)
    _, spared = _in_hospital(people, survival, stays, left)
    avoided = (np.exp(-q * left) * spared + declines(left, spared)) @ WEIGHTS
    return 1 - ((1 - over[:, 0]) * avoided + avoided_by_decline[:, 0]) / (1 - still_open[:, 0])


def readmission(
    people: People, survival: Survival, stays: Stays, settings: chosen.Stays, hazard: np.ndarray
) -> np.ndarray:
    """Chances of an admission within 30 days; `hazard` of an infarction per year, 0 after it (float64[stays])."""
    rows = stays.rows
    time = discharge_day(stays)
    stage = people.stage_at(rows, time)
    days = np.linspace(0, READMISSION_DAYS, 2 * READMISSION_DAYS + 1)[None]
    left = stays.excess * np.exp(-(time - stays.discharged) / settings.readmission_days)
    rate = admission_rate(people, rows, stays.diseases, settings) + hazard / YEAR
    total = rate[:, None] * days - left[:, None] * np.expm1(-days / settings.readmission_days)
    onset = RATES[:, 0] * (people.frailty * people.progression)[rows, None] / YEAR
    for disease in range(len(RATES)):
        began = -np.expm1(-onset[:, disease, None] * days)
        total -= np.where(stage[:, disease, None] == 0, np.log1p(-settings.work_up * began), 0.0)
    none = np.exp(-total)
    spared = survival.at(people, rows, time, stage, days + np.zeros_like(none))
    died_at_home = (1 - TERMINAL) * ((spared[:, :-1] - spared[:, 1:]) * (none[:, :-1] + none[:, 1:]) / 2).sum(axis=1)
    return 1 - none[:, -1] * spared[:, -1] - died_at_home


def _within(survived: np.ndarray, density: np.ndarray, length: np.ndarray) -> np.ndarray:
    return np.maximum(length, 0.0) * ((survived * density) @ WEIGHTS)


def _horizon(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quadrature nodes between two moments (days from the prediction time) and the distance of these."""
    length = np.maximum(last - first, 0.0)
    return first[:, None] + length[:, None] * NODES, length


def infarction(people: People, survival: Survival, stays: Stays, hazard: np.ndarray) -> np.ndarray:
    """Chances of a first infarction more than 1 and at most 365 days after the discharge day."""
    time = discharge_day(stays)
    after, length = _horizon(np.ones(len(stays)), np.minimum(365.0, FOLLOW_UP_END - time))
    rate = (hazard / YEAR)[:, None]
    spared = survival.at(people, stays.rows, time, people.stage_at(stays.rows, time), after)
    return _within(spared, rate * np.exp(-rate * after), length)


def first_diagnosis(people: People, survival: Survival, stays: Stays, disease: int) -> np.ndarray:
    """Chances that the disease is diagnosed 2 to 365 days after the day of discharge (its code knows only the day)."""
    time, day = discharge_day(stays), np.floor(stays.discharged)
    stage = people.stage_at(stays.rows, time)
    after, length = _horizon(day + 2 - time, np.minimum(day + 366, FOLLOW_UP_END) - time)
    rates = RATES[disease, :2] * (people.frailty * people.progression)[stays.rows, None] / YEAR
    first, second = rates[:, :1], rates[:, 1:]
    with np.errstate(invalid="ignore", divide="ignore"):
        absent = first * second / (second - first) * (np.exp(-first * after) - np.exp(-second * after))
    density = np.where(stage[:, disease, None] == PRECLINICAL, second * np.exp(-second * after), np.nan_to_num(absent))
    spared = survival.at(people, stays.rows, time, stage, after, without=disease)
    return np.where(stage[:, disease] >= DIAGNOSED, 0.0, _within(spared, density, length))


def _frame(task: str, subjects: np.ndarray, time: np.ndarray, chance: np.ndarray, without: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": timestamps(time),
            "probability": chance,
            "probability_without_cause": without,
        }
    ).select(pl.lit(task).alias("task"), pl.all())


def _suspected(people: People, cause: chosen.Cause, stays: Stays, episodes: Episodes, time: np.ndarray) -> np.ndarray:
    """How likely someone with an episode, who had no infarction since the first discharge, has the cause (Bayes)."""
    first = np.full(len(people), np.inf)
    np.minimum.at(first, stays.rows, stays.discharged)
    years = np.maximum(time - first[stays.rows], 0.0) / YEAR
    causal = cause.share * (1 - cause.risk) ** years
    sham = (1 - cause.share) * (1 - cause.background) ** years
    return np.where(episodes.present[stays.rows], causal / (causal + sham), 0.0)


def _last_of_day(stays: Stays) -> Stays:
    """The stays without those after which the subject came back, and left again, on the day of the discharge."""
    same = (stays.rows[1:] == stays.rows[:-1]) & (np.floor(stays.discharged[1:]) == np.floor(stays.discharged[:-1]))
    return stays.take(~np.append(same, False)[: len(stays)])


def label_truth(
    people: People, parameters: chosen.Parameters, stays: Stays, episodes: Episodes, results: list[Expected]
) -> pl.DataFrame:
    """Per task and prediction time: task, subject_id, prediction_time, probability, probability_without_cause.

    The latter knows all but who of those with an episode has the cause: what a window without the episode could tell at
    best. Prediction times include some that get no label.
    """
    survival = Survival.of(people, parameters.deaths)
    frames = []
    overnight = stays.take((stays.discharged >= np.floor(stays.admitted) + 1) & (stays.discharged < FOLLOW_UP_END))
    for task, of in (("guo_los", long_stay), ("guo_icu", transfer)):
        time = np.floor(overnight.admitted) + END_OF_DAY
        chance = of(people, survival, overnight)
        frames.append(_frame(task, people.subject_id[overnight.rows], time, chance, chance))
    infarcted = np.full(len(people), np.inf)
    np.minimum.at(infarcted, stays.rows, stays.infarction)
    stays = _last_of_day(stays)
    rows, subjects = stays.rows, people.subject_id[stays.rows]
    time = discharge_day(stays)
    lives = people.decline[rows] > time
    for task, disease in DISEASE_OF.items():
        chance = np.where(lives, first_diagnosis(people, survival, stays, NAMES.index(disease)), 0.0)
        frames.append(_frame(task, subjects, time, chance, chance))
    at_risk = lives & (infarcted[rows] > time)
    suspected = _suspected(people, parameters.cause, stays, episodes, time)

    def by_cause(task: str, background: np.ndarray, raised: np.ndarray) -> pl.DataFrame:
        chance = np.where(lives, np.where(episodes.causal[rows], raised, background), 0.0)
        return _frame(
            task, subjects, time, chance, np.where(lives, suspected * raised + (1 - suspected) * background, 0.0)
        )

    hazards = [
        np.where(at_risk, -np.log1p(-risk), 0.0) for risk in (parameters.cause.background, parameters.cause.risk)
    ]
    frames.append(
        by_cause("guo_readmission", *(readmission(people, survival, stays, parameters.stays, h) for h in hazards))
    )
    frames.append(by_cause("new_acutemi", *(infarction(people, survival, stays, h) for h in hazards)))
    for task, which, times, chances in results:
        frames.append(_frame(task, people.subject_id[which], times - 1 / 1440, chances, chances))
    return pl.concat(frames).unique(["task", "subject_id", "prediction_time"], keep="first", maintain_order=True)
