"""What visits leave in a record: codes of the day, drugs and vital signs of the minute, results an hour later.

*Copy-forward.* A visit carries the one before it forward with the subject's own copy rate: its diagnoses, drugs and
ordered panels are then those of the last visit that did not, as of that visit. Drawn for the visit that they come from,
they repeat without being remembered. Results are always new.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrctx.events.simulate import clinic
from ehrctx.events.simulate.diseases import ADVANCED, DIAGNOSED, DISEASES, NAMES, PRECLINICAL
from ehrctx.events.simulate.people import People
from ehrctx.events.simulate.record import (
    DIAGNOSIS,
    DRUG,
    FIRST,
    RESULT,
    TEXTS,
    VITAL,
    Record,
    icd,
    loinc_codes,
    place_of,
    rxnorm,
)
from ehrctx.events.simulate.results import (
    IN_WORDS,
    PLATELETS,
    TASK_TESTS,
    Measured,
    abnormal_chance,
    measured_at,
    places_of,
    values_of,
)
from ehrctx.events.simulate.visits import opening_hours

# A visit is about so many of the diagnosed diseases, and renews so many drugs, however many there are: so what comes
# next is harder to tell the more there are.
CODED, PRESCRIBED = 1.8, 1.4
SIGNED, MEASURED = 0.5, 0.5  # chances of a sign of a preclinical disease, and of vital signs
ACUTE_ONE, ACUTE_TWO, ACUTE_DRUG, URINE = 0.65, 0.25, 0.2, 0.04
POOL, POOL_PER_DISEASE, POOL_SKEW = 6, 5, 1.5  # how many acute problems a subject meets, the first ones more often
# Panels are ordered with the chance of clinic.PANELS, times LESS_TESTED + MORE_TESTED * diseases.
LESS_TESTED, MORE_TESTED = 0.8, 0.12
# panel -> the disease in which it is ordered FOLLOWED times as often
FOLLOWED_BY = {
    "diabetes": "diabetes",
    "thyroid": "hypothyroidism",
    "urate": "gout",
    "iron": "iron deficiency",
    "heart": "heart failure",
    "coagulation": "atrial fibrillation",
    "lipids": "hyperlipidemia",
}
FOLLOWED = 4.0
RESULT_DELAY = 90 / 1440
DIAGNOSTIC = 1_000_000  # visits that diagnose a disease are numbered from here on, whatever else the subject does


@dataclass(frozen=True)
class Visits:
    """By row and time. `source` is the number of the visit whose lists it carries, `as_of` that visit's time."""

    rows: np.ndarray
    number: np.ndarray
    times: np.ndarray
    source: np.ndarray
    as_of: np.ndarray
    registers: np.ndarray

    def take(self, which: np.ndarray) -> Visits:
        """Some of the visits."""
        return Visits(*(column[which] for column in vars(self).values()))


def with_sources(people: People, rows: np.ndarray, number: np.ndarray, times: np.ndarray) -> Visits:
    """Routine visits, which carry the one before forward with the subject's copy rate, and diagnostic ones."""
    fresh = (people.draws.uniform("copy", rows, number) >= people.copy_rate[rows]) | (number == 0)
    source = np.maximum.accumulate(np.where(fresh, np.arange(len(rows)), 0))
    diagnosed = people.stages[:, :, DIAGNOSED - 1]
    patient, disease = np.nonzero((diagnosed >= people.start[:, None]) & (diagnosed < people.end[:, None]))
    seen = opening_hours(diagnosed[patient, disease])
    rows, times = np.concatenate([rows, patient]), np.concatenate([times, seen])
    number = np.concatenate([number, DIAGNOSTIC + disease])
    from_number = np.concatenate([number[: len(source)][source], DIAGNOSTIC + disease])
    as_of = np.concatenate([times[: len(source)][source], diagnosed[patient, disease]])
    order = np.lexsort((number, times, rows))
    first = np.append(True, rows[order][1:] != rows[order][:-1])[: len(rows)]
    return Visits(rows[order], number[order], times[order], from_number[order], as_of[order], first)


def disease_code(stage: np.ndarray, disease: np.ndarray) -> np.ndarray:
    """Places of the codes of diseases (numbers) in stage 2 or 3."""
    codes = icd(*(d.code for d in DISEASES.values())), icd(*(d.advanced_code for d in DISEASES.values()))
    return np.where(stage == ADVANCED, codes[1][disease], codes[0][disease])


def sign_code(choice: np.ndarray, disease: np.ndarray) -> np.ndarray:
    """Places of the codes of a sign of each disease, by a uniform draw."""
    signs = [icd(*d.signs) for d in DISEASES.values()]
    table = np.array([np.resize(s, 6) for s in signs])
    return table[disease, (choice * 6).astype(np.int64)]


def drug_code(people: People, rows: np.ndarray, disease: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of each subject's own drug against a disease, and whether there is one."""
    drugs = [rxnorm(*d.drugs) for d in DISEASES.values()]
    table = np.array([np.resize(d, 12) if len(d) else np.zeros(12, dtype=np.int64) for d in drugs])
    exists = np.array([len(d) > 0 for d in drugs])
    choice = people.draws.choice("own drug", 12, rows, disease)
    return table[disease, choice], exists[disease]


def diagnose(people: People, visits: Visits, stage: np.ndarray, record: Record) -> None:
    """Codes of the day: diseases, signs, acute problems."""
    draws, rows, source, day = people.draws, visits.rows, visits.source, np.floor(visits.times)
    items = np.arange(len(DISEASES))[None]
    known = stage >= DIAGNOSED
    chance = np.where(visits.registers, 1.0, CODED / np.maximum(known.sum(axis=1), CODED))
    coded = draws.uniform("coded", rows[:, None], source[:, None], items) < chance[:, None]
    its_own = source[:, None] == DIAGNOSTIC + items
    visit, disease = np.nonzero(known & (coded | its_own))
    record.add(DIAGNOSIS, rows[visit], day[visit], disease_code(stage[visit, disease], disease))
    visit, disease = np.nonzero(stage == PRECLINICAL)
    shown = draws.uniform("signed", rows[visit], source[visit], disease) < SIGNED
    visit, disease = visit[shown], disease[shown]
    record.add(
        DIAGNOSIS,
        rows[visit],
        day[visit],
        sign_code(draws.uniform("sign", rows[visit], source[visit], disease), disease),
    )
    pool = np.minimum(POOL + POOL_PER_DISEASE * (stage >= DIAGNOSED).sum(axis=1), len(clinic.ACUTE))
    for item, share in enumerate((ACUTE_ONE, ACUTE_TWO)):
        some = draws.uniform("acute", rows, source, item) < share
        u = draws.uniform("problem", rows[some], source[some], item)
        record.add(DIAGNOSIS, rows[some], day[some], icd(*clinic.ACUTE)[(pool[some] * u**POOL_SKEW).astype(np.int64)])


def prescribe(people: People, visits: Visits, stage: np.ndarray, record: Record) -> None:
    """Refills of the drugs against diseases, and now and then one against an acute problem."""
    draws, rows, source, times = people.draws, visits.rows, visits.source, visits.times
    treated = (stage >= DIAGNOSED) & people.treated[rows]
    visit, disease = np.nonzero(treated)
    code, exists = drug_code(people, rows[visit], disease)
    chance = PRESCRIBED / np.maximum(treated.sum(axis=1), PRESCRIBED)
    given = (draws.uniform("prescribed", rows[visit], source[visit], disease) < chance[visit]) & exists
    record.add(DRUG, rows[visit][given], times[visit][given], code[given])
    some = draws.uniform("acute drug", rows, source) < ACUTE_DRUG
    which = draws.choice("which acute drug", len(clinic.ACUTE_DRUGS), rows[some], source[some])
    record.add(DRUG, rows[some], times[some], rxnorm(*clinic.ACUTE_DRUGS)[which])


def order_panels(people: People, visits: Visits, stage: np.ndarray, tested: float) -> np.ndarray:
    """Which panels are ordered; bool[visits, panels]. The sicker, the more is tested."""
    diseases = (stage >= DIAGNOSED).sum(axis=1)
    chances = (
        tested
        * np.array([panel.visit for panel in clinic.PANELS.values()])[None]
        * (LESS_TESTED + MORE_TESTED * diseases[:, None])
    )
    for place, panel in enumerate(clinic.PANELS):
        if panel in FOLLOWED_BY:
            has = stage[:, NAMES.index(FOLLOWED_BY[panel])] >= DIAGNOSED
            chances[:, place] *= np.where(has, FOLLOWED, 1.0)
    items = np.arange(len(clinic.PANELS))[None]
    return people.draws.uniform("panel", visits.rows[:, None], visits.source[:, None], items) < chances


def report_results(
    people: People, record: Record, rows: np.ndarray, times: np.ndarray, counters: tuple[np.ndarray, ...],
    tests: np.ndarray, expected: np.ndarray, noise: np.ndarray, visits: np.ndarray | int = -1,
) -> None:  # fmt: skip
    """Results of laboratory tests (places in TESTS), some platelet counts in words."""
    x = expected + noise * people.draws.normal("result", rows, *counters, tests)
    words = (tests == PLATELETS) & (people.draws.uniform("words", rows, *counters) < IN_WORDS)
    values = np.where(words, np.nan, values_of(tests, x))
    texts = np.where(words, 0, -1)
    record.add(RESULT, rows, times, loinc_codes()[tests], values, texts, visits)
    for task, place in TASK_TESTS.items():
        asked = tests == place
        if asked.any():
            record.expect(task, rows[asked], times[asked], abnormal_chance(task, expected[asked], noise[asked]))


PANEL_TESTS = [places_of(panel.tests) for panel in clinic.PANELS.values()]


def measure(
    people: People, visits: Visits, measured: Measured, ordered: np.ndarray, tested: float, record: Record
) -> None:
    """Vital signs of the visit; the panels' results; urine, in words."""
    draws, rows, number, times = people.draws, visits.rows, visits.number, visits.times
    taken = np.nonzero(draws.uniform("vitals", rows, number) < tested * MEASURED)[0]
    for place in places_of(clinic.OUTPATIENT_VITALS):
        x = measured.expected[taken, place] + measured.noise[taken, place] * draws.normal(
            "vital", rows[taken], number[taken], place
        )
        record.add(VITAL, rows[taken], times[taken], loinc_codes()[place], values_of(np.full(len(taken), place), x))
    known = times + RESULT_DELAY
    for panel, tests in enumerate(PANEL_TESTS):
        visit = np.nonzero(ordered[:, panel])[0]
        for place in tests:
            report_results(
                people, record, rows[visit], known[visit], (number[visit],), np.full(len(visit), place),
                measured.expected[visit, place], measured.noise[visit, place],
            )  # fmt: skip
    some = np.nonzero(draws.uniform("urine", rows, number) < URINE)[0]
    u = draws.uniform("protein", rows[some], number[some])
    words = np.searchsorted([0.7, 0.9], u) + TEXTS.index(clinic.URINE_RESULTS[0])
    record.add(RESULT, rows[some], known[some], place_of(clinic.URINE_PROTEIN), texts=words)


def see(people: People, visits: Visits, tested: float, record: Record) -> None:
    """All that the visits leave in the record."""
    stage = people.stage_at(visits.rows, visits.as_of)
    record.add(FIRST, visits.rows, visits.times, place_of(clinic.VISIT))
    diagnose(people, visits, stage, record)
    prescribe(people, visits, stage, record)
    now = people.stage_at(visits.rows, visits.times)
    measured = measured_at(people, visits.rows, visits.times, now)
    measure(people, visits, measured, order_panels(people, visits, stage, tested), tested, record)
