"""The planted cause: where the episode or its sham lies, and what it does to the hazard of an infarction.

Every subject whose record holds at least `distance_tokens` events, and `distance_years`, before the first admission
(or, without one, before its end) has an episode: sessions of up to three codes, three to five days apart, the last one
on the day before the first of those events. It is the cause in the share `share` of these subjects, drawn beside all
else, and its sham in the others. What the cause does begins at the first discharge: infarctions come with hazard
-log(1 - risk) per year, else -log(1 - background).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrctx.events.simulate import clinic
from ehrctx.events.simulate import parameters as chosen
from ehrctx.events.simulate.people import YEAR, People
from ehrctx.events.simulate.record import DIAGNOSIS, Batch, Record, place_of
from ehrctx.events.simulate.visits import opening_hours

DATE_ONLY = (1440 - 1) / 1440  # codes stamped 00:00 are known at 23:59, as the data set's profile says


@dataclass(frozen=True)
class Episodes:
    """Per subject: whether there is an episode, whether it is the cause, the hazard of an infarction per year, and when
    the episode ends (nan without one); bool[n], bool[n], float64[n], float64[n]."""

    present: np.ndarray
    causal: np.ndarray
    hazard: np.ndarray
    end: np.ndarray


def known_at(batch: Batch) -> np.ndarray:
    """When events are known: codes of the day at its end."""
    of_day = (batch.ranks == DIAGNOSIS) & (batch.times == np.floor(batch.times))
    return np.where(of_day, batch.times + DATE_ONLY, batch.times)


def _last_places(rows: np.ndarray, known: np.ndarray, until: np.ndarray, distance: int) -> np.ndarray:
    """The time of the event that has `distance` - 1 others between itself and `until`; nan where there are too few."""
    if not distance:
        return until
    before = known < until[rows]
    rows, known = rows[before], known[before]
    order = np.lexsort((known, rows))
    rows, known = rows[order], known[order]
    count = np.bincount(rows, minlength=len(until))
    wanted = np.cumsum(count) - distance
    enough = count >= distance
    return np.where(enough, known[np.where(enough, wanted, 0)] if len(known) else np.nan, np.nan)


def episodes_of(people: People, cause: chosen.Cause, outpatient: Batch, admission: np.ndarray) -> Episodes:
    """Who has which episode, given the outpatient events and the first admissions (inf: never)."""
    until = np.minimum(admission, people.end)
    event = _last_places(outpatient.rows, known_at(outpatient), until, cause.distance_tokens)
    last = np.floor(np.minimum(event, until - cause.distance_years * YEAR)) - 1
    present = last - _days(people, cause)[:, 0] >= people.start
    causal = present & (people.draws.uniform("cause", np.arange(len(people))) < cause.share)
    hazard = np.where(causal, -np.log1p(-cause.risk), -np.log1p(-cause.background))
    return Episodes(present, causal, hazard, np.where(present, last, np.nan))


def _days(people: People, cause: chosen.Cause) -> np.ndarray:
    """Whole days from each session to the last; float64[n, sessions]."""
    sessions = -(-cause.events // len(clinic.CAUSE))
    rows, items = np.arange(len(people))[:, None], np.arange(sessions - 1)[None]
    gaps = 3.0 + people.draws.choice("session", 3, rows, items)
    before = np.cumsum(gaps[:, ::-1], axis=1)[:, ::-1]
    return np.concatenate([before, np.zeros((len(people), 1))], axis=1)


def undergo(people: People, episodes: Episodes, cause: chosen.Cause, record: Record) -> None:
    """The episodes' events."""
    rows = np.nonzero(episodes.present)[0]
    days = _days(people, cause)[rows]
    session = np.arange(days.shape[1])[None]
    day = episodes.end[rows, None] - days
    times = opening_hours(day + people.draws.uniform("session hour", rows[:, None], session))
    event = np.arange(cause.events)
    at, item = event // len(clinic.CAUSE), event % len(clinic.CAUSE)
    codes = np.array([[place_of(code) for code in which] for which in (clinic.SHAM, clinic.CAUSE)])
    shown = episodes.causal[rows] & cause.shown
    record.add(
        DIAGNOSIS, np.repeat(rows, cause.events), times[:, at].ravel(), codes[shown.astype(int)][:, item].ravel()
    )
