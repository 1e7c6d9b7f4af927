"""When subjects come: the process against closed forms."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ehrctx.events.simulate.parameters import Parameters, Visits
from ehrctx.events.simulate.people import YEAR, people_of
from ehrctx.events.simulate.visits import gap_of, opening_hours, to_minute, visit_times, weibull


@given(st.floats(1e-2, 50), st.floats(1e-4, 10), st.floats(0, 20), st.floats(0.1, 100))
def test_the_gap_solves_its_equation(hazard, rate, excess, constant):
    gap = gap_of(*(np.array([value]) for value in (hazard, rate, excess)), constant)
    assert gap[0] > 0
    assert rate * gap[0] - excess * np.expm1(-gap[0] / constant) == pytest.approx(hazard, rel=1e-6)


@pytest.mark.parametrize("shape", [0.4, 1.0, 5.0])
def test_weibull_is_scipys_with_mean_1(shape):
    drawn = weibull(np.linspace(0.0005, 0.9995, 1_000), np.array([shape]))
    scale = 1 / stats.weibull_min(shape).mean()
    assert stats.kstest(drawn, stats.weibull_min(shape, scale=scale).cdf).statistic < 1e-3


def cohort(**changes):
    """300 subjects of ten years each who visit ten times a year, with regularity 1 and nothing else that varies."""
    visits = {"rate": 10, "rate_spread": 0, "gap_shape_spread": 0, "offspring": 0, "burden": 0} | changes
    parameters = Parameters(
        record_years=10, shortest_record_years=9.999, deaths=0, progression=0, visits=Visits(**visits)
    )
    people = people_of(parameters, 0, 0, 300)
    people = dataclasses.replace(people, visit_rate=np.full(300, float(visits["rate"])))
    return parameters.visits, *visit_times(people, parameters.visits)


def test_without_excitation_and_of_shape_1_it_is_a_poisson_process():
    _, rows, _, times = cohort()
    counts = np.bincount(rows, minlength=300) - 1  # the first visit opens the record
    assert counts.mean() == pytest.approx(100, abs=4 * 10 / np.sqrt(300))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 300))
    gaps = np.diff(times)[np.diff(rows) == 0]
    assert stats.kstest(gaps * 10 / YEAR, "expon").statistic < 0.02


@pytest.mark.parametrize(("shape", "offspring"), [(0.5, 0.0), (4.0, 0.0), (1.0, 0.5), (4.0, 0.5)])
def test_the_rate_does_not_depend_on_regularity_or_excitation(shape, offspring):
    _, rows, _, _ = cohort(gap_shape=shape, offspring=offspring)
    counts = np.bincount(rows, minlength=300) - 1
    assert counts.mean() == pytest.approx(100, abs=4 * counts.std() / np.sqrt(300) + 2)


@pytest.mark.parametrize("shape", [0.5, 1.0, 4.0])
def test_on_the_clock_of_the_cumulative_intensity_gaps_are_weibull(shape):
    """The residuals of the process, from the times alone."""
    visits, rows, _, times = cohort(gap_shape=shape, offspring=0.4)
    base, constant = 10 * (1 - 0.4) / YEAR, visits.offspring_days
    residuals = []
    for subject in range(60):
        own, excess = times[rows == subject], 0.4
        for gap in np.diff(own)[:40]:
            residuals.append(base * gap - excess * np.expm1(-gap / constant))
            excess = excess * np.exp(-gap / constant) + 0.4
    expected = stats.weibull_min(shape, scale=1 / stats.weibull_min(shape).mean())
    # clinics' hours move times by up to half a day, which shows in gaps of a few days
    body = (0.25, 0.5, 0.75, 0.9)
    assert np.allclose([np.mean(residuals <= expected.ppf(q)) for q in body], body, atol=0.035)


def test_visits_bring_visits():
    _, rows, _, _ = cohort(offspring=0.6)
    counts = np.bincount(rows, minlength=300)
    assert counts.var() / counts.mean() > 3  # of Hawkes' process: 1 / (1 - .6)^2 = 6.3 in the long run


@pytest.mark.parametrize(("shape", "low", "high"), [(0.4, 2.0, 4.0), (1.0, 0.9, 1.1), (6.0, 0.15, 0.3)])
def test_the_shape_sets_the_spread_of_the_gaps(shape, low, high):
    _, rows, _, times = cohort(gap_shape=shape)
    gaps = np.diff(times)[np.diff(rows) == 0]
    assert low < gaps.std() / gaps.mean() < high


def test_clinics_keep_their_hours_and_the_order():
    days = np.sort(np.random.default_rng(0).uniform(0, 30, 2_000))
    seen = opening_hours(days)
    hours = (seen % 1) * 24
    assert (np.diff(seen) >= 0).all()
    assert hours.min() >= 8 - 1e-6
    assert hours.max() <= 17
    assert (np.floor(seen) == np.floor(days)).all()
    assert np.allclose(to_minute(seen), seen)
