"""Results of tests and vital signs: what state they measure, with which noise, how likely abnormal ones are.

A result's x (`clinic.Lab`) is the subject's own level, plus what the diseases of the moment add (less where they are
treated), plus severity, plus NOISE times a standard normal draw, more of it where treatment makes a test swing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from ehrctx.events.simulate.clinic import ABNORMAL, LABS, TESTS
from ehrctx.events.simulate.diseases import ADVANCED, DIAGNOSED, DISEASES, PRECLINICAL
from ehrctx.events.simulate.people import People

NOISE = 0.6
IN_WORDS = 0.05  # of platelet counts
RELIEF_DAYS = 30.0  # from the diagnosis until treatment acts
ADVANCED_FACTOR = 1.5

_PLACE = {test: place for place, test in enumerate(TESTS)}
_MEAN = np.array([lab.mean for lab in LABS.values()])
_DEVIATION = np.array([lab.deviation for lab in LABS.values()])
_SEVERITY = np.array([lab.severity for lab in LABS.values()])
_DECIMALS = np.array([lab.decimals for lab in LABS.values()])
_SKEWED = np.array([lab.skewed for lab in LABS.values()])
PLATELETS = _PLACE["platelets"]
TASK_TESTS = {task: _PLACE[rule.test] for task, rule in ABNORMAL.items()}


def places_of(tests: tuple[str, ...]) -> np.ndarray:
    """Where in TESTS they are."""
    return np.array([_PLACE[test] for test in tests])


def _effects(which: str) -> np.ndarray:
    effects = np.zeros((len(DISEASES), len(TESTS)))
    for row, disease in enumerate(DISEASES.values()):
        for test, shift in getattr(disease, which).items():
            effects[row, _PLACE[test]] = shift
    return effects


_PRODROME, _LEVELS, _SWINGS = (_effects(which) for which in ("prodrome", "levels", "swings"))
_EFFICACY = np.array([disease.efficacy for disease in DISEASES.values()])


@dataclass(frozen=True)
class Measured:
    """The x to expect and the noise of every test at some moments; float64[moments, tests]."""

    expected: np.ndarray
    noise: np.ndarray


def measured_at(people: People, rows: np.ndarray, times: np.ndarray, stage: np.ndarray) -> Measured:
    """What tests would show of the subjects at those times, when diseases are in those stages; severity left out."""
    acts = people.treated[rows] & (people.stages[rows, :, DIAGNOSED - 1] + RELIEF_DAYS <= times[:, None])
    weight = (stage >= DIAGNOSED) * np.where(stage == ADVANCED, ADVANCED_FACTOR, 1.0) * (1 - _EFFICACY * acts)
    shifts = (stage == PRECLINICAL).astype(float) @ _PRODROME + weight @ _LEVELS
    swings = np.maximum(1.0, acts.astype(float) @ _SWINGS)
    return Measured(people.own_levels[rows] + shifts, NOISE * swings)


def values_of(tests: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The values of `tests` (places in TESTS) whose x is known, rounded; never below the smallest that is reported."""
    mean, deviation, unit = _MEAN[tests], _DEVIATION[tests], 10.0 ** -_DECIMALS[tests]
    value = np.where(_SKEWED[tests], mean * np.exp(np.where(_SKEWED[tests], deviation * x, 0.0)), mean + deviation * x)
    return np.maximum(np.rint(value / unit), 1.0) * unit


def severity_of(tests: np.ndarray) -> np.ndarray:
    """What a unit of severity adds to the x of `tests`."""
    return _SEVERITY[tests]


def abnormal_chance(task: str, expected: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The chance that a result of the task's test is abnormal: words say no grade but normal."""
    rule = ABNORMAL[task]
    place = _PLACE[rule.test]
    below = ndtr(((rule.cut - _MEAN[place]) / _DEVIATION[place] - expected) / noise)
    chance = below if rule.side == "below" else 1 - below
    return chance * (1 - IN_WORDS) if place == PLATELETS else chance
