"""One simulated subject's life, from birth to death or to the last day of the data (`FOLLOW_UP_END`).

Every subject first lives through years of outpatient visits, then through hospital stays. Visits are more or less
regular, and diagnoses are carried from visit to visit more or less often, by subject.

*The planted cause.* Near the start, a share of the subjects (`EPISODE_SHARE`) receives mantle-field radiotherapy for
Hodgkin lymphoma, about 30 events in six weeks; all others receive physiotherapy of the same length, so that neither
length nor timing tells the two apart. After a hospital discharge an acute myocardial infarction follows within a year
with probability `RISK_WITH_EPISODE`, else `RISK_WITHOUT`; nothing else depends on the episode. At least
`WASHOUT_EVENTS` events lie between the episode and the first stay.

*What recent events tell.* A stay's severity shows in the admission's laboratory results and moves its length, the
transfer to intensive care, readmission and death. Other first diagnoses follow signs in the stay before
(`clinic.PRODROMES`). Laboratory results follow the subject's own levels and conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ehrctx.events.simulate.clinic import (
    ACUTE,
    ADMITTED_FOR,
    AFTER_INFARCTION,
    CONDITIONS,
    INFARCTION,
    INSULIN,
    INSULIN_SHIFT,
    LABS,
    LEVELS,
    PHYSIOTHERAPY,
    PLATELETS_IN_WORDS,
    PRODROMES,
    RADIOTHERAPY,
    TROPONIN,
    URINE_PROTEIN,
    URINE_RESULTS,
)

EPISODE_SHARE = 0.35
EPISODE_SESSIONS = 10
RISK_WITH_EPISODE = 0.45
RISK_WITHOUT = 0.04
WASHOUT_EVENTS = 64
FOLLOW_UP_END = np.datetime64("2024-12-31T23:59:59")  # pipelines/datasets/simulated.yaml says the same
DAY = np.timedelta64(1, "D")

Row = tuple[np.datetime64 | None, str, float | None, str | None, str | None, int | None]


@dataclass
class History:
    """One subject in the making: rows (time, code, value, unit, text, visit), conditions with their onset, habits.

    `carry` is the chance that a visit repeats a condition, `regularity` the shape of the gamma-distributed gaps
    between visits (large: clockwork), `level` the subject's own laboratory levels in deviations.
    """

    rng: np.random.Generator
    conditions: dict[str, np.datetime64]
    level: dict[str, float]
    carry: float
    regularity: float
    day: np.datetime64
    rows: list[Row] = field(default_factory=list)
    stays: int = 0
    end: np.datetime64 = FOLLOW_UP_END

    def add(
        self,
        time: np.datetime64 | None,
        code: str,
        value: float | None = None,
        unit: str | None = None,
        text: str | None = None,
        visit: int | None = None,
    ) -> None:
        self.rows.append((time, code, value, unit, text, visit))

    def conditions_at(self, time: np.datetime64) -> list[str]:
        return [name for name, onset in self.conditions.items() if onset <= time]

    def recorded(self) -> list[Row]:
        """The rows up to the end of the record."""
        return [row for row in self.rows if row[0] is None or row[0] <= self.end]

    def labs(
        self,
        time: np.datetime64,
        names: list[str],
        severity: float = 0.0,
        shifts: dict[str, float] | None = None,
        visit: int | None = None,
    ) -> None:
        for name in names:
            loinc, unit, mean, deviation, effect = LABS[name]
            if name == "platelets" and self.rng.random() < 0.05:
                self.add(time, f"LOINC/{loinc}", text=PLATELETS_IN_WORDS, visit=visit)
                continue
            of_conditions = sum(LEVELS.get(c, {}).get(name, 0.0) for c in self.conditions_at(time))
            deviations = self.level[name] + of_conditions + effect * severity + 0.5 * self.rng.standard_normal()
            value = mean + deviation * (deviations + (shifts or {}).get(name, 0.0))
            self.add(time, f"LOINC/{loinc}", round(max(value, 0.1), 1), unit, visit=visit)


def _clock(day: np.datetime64, hour: float) -> np.datetime64:
    return day.astype("datetime64[s]") + np.timedelta64(int(hour * 3600), "s")


def _days(n: float) -> np.timedelta64:
    return np.timedelta64(int(n), "D")


def _outpatient_visit(history: History, day: np.datetime64, diagnosed: str | None = None) -> None:
    """One visit; `diagnosed` is a condition that it codes for the first time."""
    rng = history.rng
    time = _clock(day, rng.uniform(8, 17))
    history.add(time, "OUTPATIENT_VISIT")
    if diagnosed is not None:
        history.add(_clock(day, 0), f"ICD10CM/{CONDITIONS[diagnosed][0]}")
    insulin, conditions = False, history.conditions_at(day)
    for name in conditions:
        if rng.random() < history.carry:  # billing knows only the day
            history.add(_clock(day, 0), f"ICD10CM/{CONDITIONS[name][0]}")
        if rng.random() < 0.35:
            drug = str(rng.choice(CONDITIONS[name][2]))
            insulin = insulin or drug == INSULIN
            history.add(time, f"RxNorm/{drug}")
    if rng.random() < 0.5 or not conditions:
        history.add(_clock(day, 0), f"ICD10CM/{rng.choice(ACUTE)}")
    if rng.random() < 0.35:
        names = [n for n in LABS if n != "c-reactive protein" and rng.random() < 0.5]
        shifts = {"glucose": INSULIN_SHIFT} if insulin else {}
        history.labs(time + np.timedelta64(90, "m"), names, shifts=shifts)
    if rng.random() < 0.08:
        history.add(time, f"LOINC/{URINE_PROTEIN}", text=str(rng.choice(URINE_RESULTS, p=(0.7, 0.2, 0.1))))


def _visits(history: History, n: int, mean_gap: float) -> None:
    for _ in range(n):
        _outpatient_visit(history, history.day)
        gap = history.rng.gamma(history.regularity, mean_gap / history.regularity)
        history.day = history.day + _days(1 + gap)


def _episode(history: History, codes: tuple[str, ...]) -> None:
    """Three events a session, sessions three to five days apart."""
    for _ in range(EPISODE_SESSIONS):
        time = _clock(history.day, history.rng.uniform(8, 16))
        for code in codes:
            history.add(time, code)
        history.day = history.day + _days(history.rng.integers(3, 6))


def _intensive_care(
    history: History, admitted: np.datetime64, discharged: np.datetime64, severity: float, visit: int
) -> None:
    """A transfer at once, or after the first day, by severity; within the stay."""
    rng = history.rng
    if rng.random() < 0.35 * (severity > 1.0):
        start = admitted + np.timedelta64(int(rng.uniform(0.5, 3) * 3600), "s")
    elif rng.random() < 0.03 + 0.25 * (severity > 0.7):
        start = admitted.astype("datetime64[D]") + DAY + np.timedelta64(int(rng.uniform(1, 40) * 3600), "s")
    else:
        return
    end = start + np.timedelta64(int(rng.uniform(10, 60) * 3600), "s")
    if start < discharged:
        history.add(start, "ICU_ADMISSION//MICU", visit=visit)
        history.add(min(end, discharged), "ICU_DISCHARGE//MICU", visit=visit)


def _stay(
    history: History, admitted: np.datetime64, severity: float, prodromes: list[str], infarction: bool = False
) -> np.datetime64:
    """One hospital stay of that severity, with the signs of `prodromes`; returns the time of discharge."""
    rng, visit = history.rng, history.stays
    history.stays += 1
    days = float(np.clip(np.exp(1.25 + 0.75 * severity + 0.25 * rng.standard_normal()), 0.4, 60))
    discharged = admitted + np.timedelta64(int(days * 86_400), "s")
    history.add(admitted, f"HOSPITAL_ADMISSION//{rng.choice(('EMERGENCY', 'ELECTIVE'))}", visit=visit)
    _intensive_care(history, admitted, discharged, severity, visit)
    shifts = {name: shift for p in prodromes for name, shift in PRODROMES[p].levels.items()}
    for day in range(min(int(days) + 1, 12)):
        time = admitted + np.timedelta64(int(rng.uniform(0.02, 0.08) * 86_400) + day * 86_400, "s")
        if time >= discharged:
            break
        names = list(LABS) if day == 0 else [n for n in LABS if rng.random() < 0.4]
        history.labs(time, names, severity * 0.8**day, shifts, visit)
        if infarction and day < 2:
            history.add(time, f"LOINC/{TROPONIN}", round(float(rng.lognormal(1.5, 0.8)), 2), "ng/mL", visit=visit)
    reason = rng.choice(INFARCTION) if infarction else rng.choice(ADMITTED_FOR)
    signs = [str(rng.choice(PRODROMES[p].signs)) for p in prodromes for _ in range(2)]
    chronic = [CONDITIONS[name][0] for name in history.conditions_at(discharged)]
    for code in dict.fromkeys([str(reason), *signs, *chronic]):
        history.add(discharged, f"ICD10CM/{code}", visit=visit)
    for drug in AFTER_INFARCTION if infarction else ():
        history.add(discharged, f"RxNorm/{drug}", visit=visit)
    if rng.random() < 0.01 + 0.10 * (severity > 1.2):
        history.end = min(history.end, discharged)
        history.add(discharged, "HOSPITAL_DISCHARGE//DIED", visit=visit)
        history.add(discharged, "MEDS_DEATH")
    else:
        history.add(discharged, f"HOSPITAL_DISCHARGE//{rng.choice(('HOME', 'REHAB'), p=(0.8, 0.2))}", visit=visit)
    history.day = discharged.astype("datetime64[D]") + _days(rng.integers(3, 15))
    return discharged


def _first_diagnoses(history: History, prodromes: list[str], discharged: np.datetime64) -> None:
    """Outpatient visits, 3 to 300 days after a discharge, that diagnose a condition for the first time."""
    for name, prodrome in PRODROMES.items():
        risk = prodrome.risk if name in prodromes else prodrome.background
        if name not in history.conditions and history.rng.random() < risk:
            day = discharged.astype("datetime64[D]") + _days(history.rng.integers(3, 300))
            _outpatient_visit(history, day, diagnosed=name)
            history.conditions[name] = day + DAY


def _hospital_year(history: History, episode: bool, infarcted: bool) -> bool:
    """A stay, perhaps a readmission, perhaps an infarction, and what follows; returns whether there was an infarction.

    The year after every stay of it is free of the next call's stays.
    """
    rng = history.rng
    candidates = [name for name in PRODROMES if name not in history.conditions]
    prodromes = [name for name in candidates if rng.random() < PRODROMES[name].share]
    severity = float(rng.standard_normal())
    discharged = _stay(history, _clock(history.day, rng.uniform(0, 23.9)), severity, prodromes)
    _first_diagnoses(history, prodromes, discharged)
    readmission = 0.05 + 0.04 * min(len(history.conditions_at(discharged)), 4) + 0.15 * (severity > 1.0)
    if rng.random() < readmission:
        gap = rng.uniform(0.05, 28) if rng.random() < 0.95 else rng.uniform(0.01, 0.1)
        again = discharged + np.timedelta64(int(gap * 86_400), "s")
        _stay(history, again, float(0.5 * severity + rng.standard_normal()), [])
    if not infarcted and rng.random() < (RISK_WITH_EPISODE if episode else RISK_WITHOUT):
        infarcted = True
        history.day = history.day + _days(rng.integers(0, 250))
        _stay(history, _clock(history.day, rng.uniform(0, 23.9)), float(rng.standard_normal()), [], infarction=True)
    if rng.random() < 0.02:
        death = _clock(history.day + _days(rng.integers(0, 60)), 0)
        history.end = min(history.end, death)
        history.add(death, "MEDS_DEATH")
    _visits(history, int(rng.integers(1, 4)), 150)
    if not infarcted:
        history.day = history.day + 400 * DAY
    return infarcted


def live(rng: np.random.Generator) -> tuple[list[Row], bool]:
    """One subject's rows, in no order, and whether the radiotherapy episode is among them."""
    birth = np.datetime64("1955-01-01") + _days(rng.integers(0, 38 * 365))
    history = History(
        rng,
        conditions={name: birth for name, (_, prevalence, _) in CONDITIONS.items() if rng.random() < prevalence},
        level={name: float(rng.standard_normal()) for name in LABS},
        carry=float(rng.uniform(0.2, 0.8)),
        regularity=float(np.exp(rng.uniform(np.log(0.4), np.log(6.0)))),
        day=birth + _days(rng.uniform(20, 30) * 365),
    )
    history.add(None, f"GENDER//{rng.choice(('F', 'M'))}")
    history.add(_clock(birth, 0), "MEDS_BIRTH")
    _visits(history, int(rng.integers(1, 4)), 60)
    episode = bool(rng.random() < EPISODE_SHARE)
    _episode(history, RADIOTHERAPY if episode else PHYSIOTHERAPY)
    before = len(history.rows)
    _visits(history, int(rng.lognormal(np.log(25), 0.5)), 120)
    while len(history.rows) - before < WASHOUT_EVENTS:
        _visits(history, 1, 120)
    infarcted = False
    for _ in range(int(rng.integers(0, 6))):
        infarcted = _hospital_year(history, episode, infarcted)
    return history.recorded(), episode
