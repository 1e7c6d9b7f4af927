"""What hospital stays leave in a record: moves, panels by day, charted vital signs, drugs, codes at discharge."""

from __future__ import annotations

import numpy as np

from ehrctx.events.simulate import clinic
from ehrctx.events.simulate import parameters as chosen
from ehrctx.events.simulate.diseases import DIAGNOSED, PRECLINICAL
from ehrctx.events.simulate.outpatient import PANEL_TESTS, disease_code, drug_code, report_results, sign_code
from ehrctx.events.simulate.people import People
from ehrctx.events.simulate.record import (
    DEATH,
    DIAGNOSIS,
    DRUG,
    FIRST,
    LAST,
    RESULT,
    TEXTS,
    TRANSFER_IN,
    TRANSFER_OUT,
    VITAL,
    Record,
    icd,
    loinc_codes,
    place_of,
    rxnorm,
)
from ehrctx.events.simulate.results import Measured, measured_at, places_of, severity_of, values_of
from ehrctx.events.simulate.stays import INFARCTED, Stays
from ehrctx.events.simulate.visits import to_minute

RECOVERY = 0.8  # of a stay's severity is left after each day
TEST_DAYS = 30  # days of a stay on which panels are drawn, at most
DRAWN_FROM, DRAWN_WITHIN = 0.02, 0.06  # of the day that began with the admission
SICKER = 0.3  # rise of the chance of a panel with severity
FIRST_DAY = 1.5
HOSPITAL_DRUG, INTENSIVE_DRUG, HOME_DRUG = 0.8, 0.7, 0.6
INTENSIVE_DAYS = 2.0  # mean length of a stay in intensive care
SIGNS_CODED = 2
UNWELL = 0.5  # steps down a list of assessments at severity 0, the mean of an exponential draw
TROPONIN = places_of(("troponin",))[0]
INFARCTED_TROPONIN = 4.0  # deviations: some fifty times the mean


def intensive_care(people: People, stays: Stays) -> tuple[np.ndarray, np.ndarray]:
    """When each stay's time in intensive care ends, and whether there is one."""
    some = np.isfinite(stays.transfer)
    lasts = INTENSIVE_DAYS * people.draws.exponential("intensive care", stays.rows, stays.number)
    left = np.minimum(np.where(some, stays.transfer, 0.0) + lasts + 1 / 24, stays.discharged)
    return to_minute(left), some


def move(people: People, stays: Stays, record: Record) -> None:
    """Admission, intensive care, discharge, death."""
    u = people.draws.uniform("elective", stays.rows, stays.number)
    elective = (u < 0.3) & (stays.reason != INFARCTED)
    admissions, discharges = ([place_of(code) for code in codes] for codes in (clinic.ADMISSIONS, clinic.DISCHARGES))
    record.add(FIRST, stays.rows, stays.admitted, np.where(elective, admissions[1], admissions[0]), visits=stays.number)
    left, some = intensive_care(people, stays)
    entered, ended = (place_of(code) for code in clinic.INTENSIVE_CARE)
    record.add(TRANSFER_IN, stays.rows[some], stays.transfer[some], entered, visits=stays.number[some])
    record.add(TRANSFER_OUT, stays.rows[some], left[some], ended, visits=stays.number[some])
    home = people.draws.uniform("rehabilitation", stays.rows, stays.number) < 0.85
    alive = np.where(home, discharges[0], discharges[1])
    closing = np.where(stays.died, place_of(clinic.DISCHARGED_DEAD), alive)
    record.add(LAST, stays.rows, stays.discharged, closing, visits=stays.number)
    record.add(DEATH, stays.rows[stays.died], stays.discharged[stays.died], place_of(clinic.DEATH))


def days_of(people: People, stays: Stays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each day of each stay on which blood may be drawn: the stay, the day's number, the time."""
    days = np.minimum(np.ceil(stays.discharged - stays.admitted), TEST_DAYS).astype(np.int64)
    stay = np.repeat(np.arange(len(stays)), days)
    day = np.arange(len(stay)) - np.repeat(np.cumsum(days) - days, days)
    u = people.draws.uniform("drawn", stays.rows[stay], stays.number[stay], day)
    time = to_minute(stays.admitted[stay] + day + DRAWN_FROM + DRAWN_WITHIN * u)
    kept = time < stays.discharged[stay]
    return stay[kept], day[kept], time[kept]


def measure(people: People, stays: Stays, measured: Measured, tested: float, record: Record) -> None:
    """Panels by day, more of them the sicker the patient; troponin after an infarction."""
    stay, day, time = days_of(people, stays)
    rows, number, severity = stays.rows[stay], stays.number[stay], stays.severity[stay]
    left = severity * RECOVERY**day
    busy = tested * (1 + SICKER * np.maximum(severity, 0)) * np.where(day == 0, FIRST_DAY, 1.0)
    for panel, (tests, of) in enumerate(zip(PANEL_TESTS, clinic.PANELS.values(), strict=True)):
        drawn = np.nonzero(people.draws.uniform("ward panel", rows, number, day, panel) < of.day * busy)[0]
        at = stay[drawn]
        for place in tests:
            places = np.full(len(drawn), place)
            report_results(
                people, record, rows[drawn], time[drawn], (number[drawn], 1 + day[drawn]), places,
                measured.expected[at, place] + severity_of(places) * left[drawn], measured.noise[at, place],
                number[drawn],
            )  # fmt: skip
    drawn = np.nonzero(
        np.isfinite(stays.infarction[stay])
        & (time >= stays.infarction[stay])
        & (day < stays.infarction[stay] - stays.admitted[stay] + 3)
    )[0]
    x = INFARCTED_TROPONIN + people.draws.normal("troponin", rows[drawn], number[drawn], day[drawn])
    values = values_of(np.full(len(drawn), TROPONIN), x)
    record.add(RESULT, rows[drawn], time[drawn], loinc_codes()[TROPONIN], values, visits=number[drawn])


def chart(people: People, stays: Stays, measured: Measured, settings: chosen.Stays, record: Record) -> None:
    """Rounds of vital signs and assessments, evenly over the stay, and more of them in intensive care."""
    left, some = intensive_care(people, stays)
    spans = (
        (np.arange(len(stays)), stays.admitted, stays.discharged, settings.charted_per_day),
        (np.nonzero(some)[0], stays.transfer[some], left[some], settings.charted_per_intensive_day),
    )
    for span, (which, begins, ends, per_day) in enumerate(spans):
        if not per_day:
            continue
        rounds = np.floor((ends - begins) * per_day).astype(np.int64)
        at = np.repeat(np.arange(len(which)), rounds)
        count = np.arange(len(at)) - np.repeat(np.cumsum(rounds) - rounds, rounds)
        stay = which[at]
        rows, number = stays.rows[stay], stays.number[stay]
        time = begins[at] + (count + people.draws.uniform("round", rows, number, count, span)) / per_day
        severity = stays.severity[stay] * RECOVERY ** np.floor(time - stays.admitted[stay])
        for place in places_of(clinic.CHARTED_VITALS):
            places = np.full(len(at), place)
            noise = people.draws.normal("charted", rows, number, count, span, place)
            x = measured.expected[stay, place] + severity_of(places) * severity + measured.noise[stay, place] * noise
            record.add(VITAL, rows, to_minute(time), loinc_codes()[place], values_of(places, x), visits=number)
        for item, (loinc, words) in enumerate(clinic.ASSESSMENTS.items()):
            # the sicker, the further down the list
            steps = UNWELL * np.exp(severity) * people.draws.exponential("assessed", rows, number, count, span, item)
            found = np.minimum(steps.astype(np.int64), len(words) - 1)
            texts = np.array([TEXTS.index(word) for word in words])[found]
            record.add(VITAL, rows, to_minute(time), place_of(loinc), texts=texts, visits=number)


def treat(people: People, stays: Stays, stage: np.ndarray, record: Record) -> None:
    """Drugs of the ward by day, of intensive care once, of chronic diseases at discharge."""
    draws = people.draws
    stay, day, time = days_of(people, stays)
    rows, number = stays.rows[stay], stays.number[stay]
    given = draws.uniform("ward drug", rows, number, day) < HOSPITAL_DRUG
    u = draws.uniform("which ward drug", rows[given], number[given], day[given])
    drugs = rxnorm(*clinic.HOSPITAL_DRUGS)
    record.add(DRUG, rows[given], time[given], drugs[(len(drugs) * u**1.5).astype(np.int64)], visits=number[given])
    some = np.nonzero(np.isfinite(stays.transfer))[0]
    for item, drug in enumerate(rxnorm(*clinic.INTENSIVE_DRUGS)):
        infused = some[draws.uniform("intensive drug", stays.rows[some], stays.number[some], item) < INTENSIVE_DRUG]
        record.add(DRUG, stays.rows[infused], stays.transfer[infused], drug, visits=stays.number[infused])
    stay, disease = np.nonzero((stage >= DIAGNOSED) & people.treated[stays.rows])
    rows, number = stays.rows[stay], stays.number[stay]
    code, exists = drug_code(people, rows, disease)
    given = exists & (draws.uniform("home drug", rows, number, disease) < HOME_DRUG)
    record.add(DRUG, rows[given], stays.discharged[stay][given], code[given], visits=number[given])
    some = np.nonzero(np.isfinite(stays.infarction) & ~stays.died)[0]
    for drug in rxnorm(*clinic.AFTER_INFARCTION):
        record.add(DRUG, stays.rows[some], stays.discharged[some], drug, visits=stays.number[some])


def diagnose(people: People, stays: Stays, record: Record) -> None:
    """An infarction when it is found; at discharge what admitted, signs, and all diseases that are diagnosed."""
    draws, rows, number = people.draws, stays.rows, stays.number
    some = np.isfinite(stays.infarction)
    which = draws.choice("infarction code", len(clinic.INFARCTION), rows[some], number[some])
    record.add(DIAGNOSIS, rows[some], stays.infarction[some], icd(*clinic.INFARCTION)[which], visits=number[some])
    other = stays.reason != INFARCTED
    which = draws.choice("admitted for", len(clinic.ADMITTED_FOR), rows[other], number[other])
    record.add(DIAGNOSIS, rows[other], stays.discharged[other], icd(*clinic.ADMITTED_FOR)[which], visits=number[other])
    stage = people.stage_at(rows, stays.discharged)
    stay, disease = np.nonzero(stage == PRECLINICAL)
    for item in range(SIGNS_CODED):
        u = draws.uniform("ward sign", rows[stay], number[stay], disease, item)
        record.add(DIAGNOSIS, rows[stay], stays.discharged[stay], sign_code(u, disease), visits=number[stay])
    known = np.where(
        people.stages[rows, :, DIAGNOSED - 1] < np.minimum(stays.discharged, people.end[rows])[:, None], stage, 0
    )
    stay, disease = np.nonzero(known >= DIAGNOSED)
    record.add(
        DIAGNOSIS, rows[stay], stays.discharged[stay], disease_code(known[stay, disease], disease), visits=number[stay]
    )


def admit(people: People, stays: Stays, settings: chosen.Stays, record: Record) -> None:
    """All that the stays leave in the record."""
    stage = people.stage_at(stays.rows, stays.admitted)
    measured = measured_at(people, stays.rows, stays.admitted, stage)
    move(people, stays, record)
    measure(people, stays, measured, settings.tested, record)
    chart(people, stays, measured, settings, record)
    treat(people, stays, stage, record)
    diagnose(people, stays, record)
