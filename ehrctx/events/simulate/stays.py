"""When the simulated subjects are in hospital, and when a first infarction comes.

Several clocks run side by side, and the first to ring admits the subject:

* a hazard `rate` * f * exp(rate_spread * z) * (1 + burden * diseases) per year, where z also moves the rate of visits,
  and, after a discharge, an excess that fades with the time constant D: (E / D) exp(-t / D) per day with
  E = readmission * min(MOST, PER_DISEASE * diseases + SEVERE [severity of the last stay > 1]); diseases are
  counted when the record begins and at each discharge;
* the beginning of a preclinical stage, in the share `work_up` of cases;
* the infarction: from the first discharge on, with a constant hazard h, where 1 - exp(-h) is the risk within a year;
* or, with `index_years`, nothing but the decline before a first admission at a uniform time;
* the decline (`people`), in the share TERMINAL of cases; else the subject dies at home.

A stay of severity s (normal; its mean rises with what admits) lasts L days, log L = LENGTH + BY_SEVERITY * s +
SPREAD * Z. A transfer to intensive care comes after an exponential time of rate `intensive` * INTENSIVE *
exp(INTENSIVE_BY_SEVERITY * s) per day, or of rate HASTE in the share Phi(s - AT_ONCE). Clocks that ring during a stay
do not end it, except the decline.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from scipy.special import ndtr

from ehrctx.events.simulate import parameters as chosen
from ehrctx.events.simulate.people import FOLLOW_UP_END, TERMINAL, YEAR, People
from ehrctx.events.simulate.visits import gap_of, to_minute

REGULAR, WORKED_UP, INFARCTED, TERMINATED = range(4)
MEAN_SEVERITY = np.array([0.0, -0.3, 0.6, 1.6])  # by what admits
PER_DISEASE, SEVERE, MOST = 0.012, 0.15, 0.5
LENGTH, BY_SEVERITY, SPREAD = 1.25, 0.55, 0.5
INTENSIVE, INTENSIVE_BY_SEVERITY, AT_ONCE, HASTE = 0.0035, 1.0, 2.0, 16.0


@dataclass(frozen=True)
class Stays:
    """By row, then in time. `transfer` to intensive care and `infarction` (inf where none) are times, as the others.

    `transfer_rate` is the hazard of a transfer per day; `reason` is what admitted; `excess` is E after the discharge,
    `diseases` the count that holds until the next stay.
    """

    rows: np.ndarray
    number: np.ndarray
    reason: np.ndarray
    admitted: np.ndarray
    discharged: np.ndarray
    died: np.ndarray
    severity: np.ndarray
    transfer: np.ndarray
    transfer_rate: np.ndarray
    infarction: np.ndarray
    excess: np.ndarray
    diseases: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: np.ndarray) -> Stays:
        """Some of the stays."""
        return Stays(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def admission_rate(people: People, rows: np.ndarray, diseases: np.ndarray, stays: chosen.Stays) -> np.ndarray:
    """The hazard per day without excess."""
    own = stays.rate * people.frailty[rows] * np.exp(stays.rate_spread * people.demand[rows])
    return own * (1 + stays.burden * diseases) / YEAR


def work_ups(people: People, share: float) -> np.ndarray:
    """When a preclinical stage's beginning leads to an admission, if not during a stay; float64[n, diseases]."""
    n, diseases, _ = people.stages.shape
    worked_up = people.draws.uniform("work-up", np.arange(n)[:, None], np.arange(diseases)[None]) < share
    return np.where(worked_up & (people.stages[:, :, 0] >= people.start[:, None]), people.stages[:, :, 0], np.inf)


def index_admission(people: People, stays: chosen.Stays) -> np.ndarray | None:
    """When everyone is admitted for the first time, where the parameters say so."""
    if stays.index_years is None:
        return None
    least, most = stays.index_years
    u = people.draws.uniform("index", np.arange(len(people)))
    return FOLLOW_UP_END - YEAR * (least + (most - least) * u)


def _next(values: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.where(values > after[:, None], values, np.inf).min(axis=1, initial=np.inf)


def _admissions(
    people: People, stays: chosen.Stays, rows: np.ndarray, number: int, since: np.ndarray, excess: np.ndarray,
    diseases: np.ndarray, preclinical: np.ndarray, infarction: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """When each subject comes to hospital next (inf: never), and for which reason."""
    rate = admission_rate(people, rows, diseases, stays)
    index = index_admission(people, stays) if number == 0 else None
    with np.errstate(divide="ignore"):
        hazard = people.draws.exponential("admission", rows, number)
        regular = since + (gap_of(hazard, rate, excess, stays.readmission_days) if stays.rate else np.inf)
    of_stage = _next(preclinical[rows], since)
    if index is not None:
        regular, of_stage = index[rows], np.full(len(rows), np.inf)
    terminal = people.draws.uniform("terminal", rows) < TERMINAL
    decline = people.decline[rows]
    clocks = np.stack(
        [
            regular,
            of_stage,
            np.where(infarction > since, infarction, np.inf),
            np.where(terminal, decline, np.inf),
        ]
    )
    reason = clocks.argmin(axis=0)
    time = clocks.min(axis=0)
    return np.where((time > decline) | (time >= FOLLOW_UP_END), np.inf, time), reason


def first_admission(people: People, stays: chosen.Stays) -> np.ndarray:
    """When each subject first comes to hospital; inf: never."""
    rows = np.arange(len(people))
    diseases = people.diagnosed_at(rows, people.start)
    none = np.zeros(len(people))
    return _admissions(
        people, stays, rows, 0, people.start, none, diseases, work_ups(people, stays.work_up), none + np.inf
    )[0]


def stays_of(people: People, stays: chosen.Stays, infarction_hazard: np.ndarray) -> Stays:
    """All stays, whose discharges may lie beyond the end of the follow-up; `infarction_hazard` is h (float64[n])."""
    draws, preclinical = people.draws, work_ups(people, stays.work_up)
    rows = np.arange(len(people))
    since, excess = people.start.copy(), np.zeros(len(people))
    diseases = people.diagnosed_at(rows, since)
    infarction = np.full(len(people), np.inf)
    with np.errstate(divide="ignore"):
        wait = YEAR * draws.exponential("infarction", rows) / infarction_hazard
    found: list[Stays] = []
    number = 0
    while len(rows):
        admitted, reason = _admissions(people, stays, rows, number, since, excess, diseases, preclinical, infarction)
        some = np.isfinite(admitted)
        rows, reason, admitted, infarction = rows[some], reason[some], to_minute(admitted[some]), infarction[some]
        if not len(rows):
            break
        severity = MEAN_SEVERITY[reason] + draws.normal("severity", rows, number)
        length = np.exp(LENGTH + BY_SEVERITY * severity + SPREAD * draws.normal("length", rows, number))
        discharged, decline = admitted + length, people.decline[rows]
        terminal = reason == TERMINATED
        died = terminal | (decline < discharged)
        discharged = to_minute(np.where(terminal, discharged, np.minimum(discharged, decline)))
        at_once = draws.uniform("at once", rows, number) < ndtr(severity - AT_ONCE)
        rate = np.where(at_once, HASTE, stays.intensive * INTENSIVE * np.exp(INTENSIVE_BY_SEVERITY * severity))
        transfer = to_minute(admitted + draws.exponential("transfer", rows, number) / rate)
        in_stay = (infarction >= admitted) & (infarction <= discharged) | (reason == INFARCTED)
        diseases = people.diagnosed_at(rows, discharged)
        after = np.minimum(PER_DISEASE * diseases + SEVERE * (severity > 1), MOST) * stays.readmission
        found.append(
            Stays(
                rows=rows,
                number=np.full(len(rows), number),
                reason=reason,
                admitted=admitted,
                discharged=discharged,
                died=died,
                severity=severity,
                transfer=np.where(transfer < discharged, transfer, np.inf),
                transfer_rate=rate,
                infarction=np.where(in_stay, np.maximum(to_minute(infarction), admitted), np.inf),
                excess=after,
                diseases=diseases,
            )
        )
        if number == 0:
            infarction = discharged + wait[rows]
            infarction = np.where(infarction < decline, infarction, np.inf)
        infarction = np.where(in_stay, np.inf, infarction)
        on = ~died & (discharged < FOLLOW_UP_END)
        rows, since, excess, diseases = rows[on], discharged[on], after[on], diseases[on]
        infarction = infarction[on]
        number += 1
    together = _joined(found or [_none()])
    return together.take(np.lexsort((together.number, together.rows)))


def _joined(parts: list[Stays]) -> Stays:
    return Stays(**{field.name: np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(Stays)})


def _none() -> Stays:
    whole = {"rows", "number", "reason", "diseases"}
    types = {f.name: bool if f.name == "died" else np.int64 if f.name in whole else float for f in fields(Stays)}
    return Stays(**{name: np.empty(0, dtype=dtype) for name, dtype in types.items()})
