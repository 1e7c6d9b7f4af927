"""`ehrctx simulate`: a cohort of any size as MEDS, shard by shard, on any number of processes, its truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrctx import __version__
from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.events.profile import SIMULATED
from ehrctx.events.simulate import clinic
from ehrctx.events.simulate.cause import Episodes, episodes_of, undergo
from ehrctx.events.simulate.diseases import DIAGNOSED, NAMES
from ehrctx.events.simulate.inpatient import admit
from ehrctx.events.simulate.outpatient import DIAGNOSTIC, Visits, disease_code, see, with_sources
from ehrctx.events.simulate.parameters import Parameters
from ehrctx.events.simulate.people import FOLLOW_UP_END, People, people_of
from ehrctx.events.simulate.record import (
    DEATH,
    DIAGNOSIS,
    FIRST,
    STATIC,
    Record,
    code_table,
    frame_of,
    in_order,
    joined,
    place_of,
    timestamps,
)
from ehrctx.events.simulate.stays import Stays, first_admission, stays_of
from ehrctx.events.simulate.truth import label_truth
from ehrctx.events.simulate.visits import to_minute, visit_times
from ehrctx.events.splits import hash_splits
from ehrctx.events.writer import write_metadata
from ehrctx.study import HashSplits

SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))
TRUTH = ("subjects", "diseases", "labels")


class Shard(NamedTuple):
    """The events of some subjects, and what is true of them."""

    events: pl.DataFrame
    subjects: pl.DataFrame
    diseases: pl.DataFrame
    labels: pl.DataFrame


def _in_hospital(visits: Visits, stays: Stays) -> np.ndarray:
    """Whether each visit falls into a stay; bool[visits]."""
    if not len(stays):
        return np.zeros(len(visits.rows), dtype=bool)
    days = FOLLOW_UP_END + 1  # longer than any time: one number orders subjects and times
    last = np.searchsorted(stays.rows * days + stays.admitted, visits.rows * days + visits.times, side="right") - 1
    at = np.maximum(last, 0)
    return (last >= 0) & (stays.rows[at] == visits.rows) & (visits.times <= stays.discharged[at])


def _found_in_hospital(people: People, visits: Visits, record: Record) -> None:
    """Diseases that would have been diagnosed at `visits` leave their code of the day all the same."""
    some = visits.number >= DIAGNOSTIC
    rows, disease, day = visits.rows[some], visits.number[some] - DIAGNOSTIC, np.floor(visits.as_of[some])
    record.add(DIAGNOSIS, rows, day, disease_code(np.full(len(rows), DIAGNOSED), disease))


def _born(people: People, record: Record) -> None:
    rows = np.arange(len(people))
    female, male = (place_of(code) for code in clinic.SEXES)
    record.add(FIRST, rows, np.full(len(rows), STATIC), np.where(people.female, female, male))
    record.add(FIRST, rows, people.birth, place_of(clinic.BIRTH))


def _ends(people: People, stays: Stays, record: Record) -> np.ndarray:
    """The last moment of each record. Whoever declines outside hospital, and is not admitted, dies at home."""
    end = np.full(len(people), np.inf)
    np.minimum.at(end, stays.rows[stays.died], stays.discharged[stays.died])
    at_home = np.nonzero(np.isinf(end) & np.isfinite(people.decline))[0]
    end[at_home] = to_minute(people.decline[at_home])
    record.add(DEATH, at_home, end[at_home], place_of(clinic.DEATH))
    return end


def _subjects(people: People, episodes: Episodes) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "subject_id": people.subject_id,
            "level": pl.Series(people.level).fill_nan(None),
            "copy_rate": people.copy_rate,
            "gap_shape": people.gap_shape,
            "visit_rate": people.visit_rate,
            "progression": people.progression,
            "frailty": people.frailty,
            "has_episode": episodes.present,
            "has_cause": episodes.causal,
            "episode_end": timestamps(np.where(episodes.present, episodes.end, STATIC)),
        }
    )


def _diseases(people: People) -> pl.DataFrame:
    rows, disease = np.nonzero(people.stages[:, :, 0] < FOLLOW_UP_END)
    reached = people.stages[rows, disease]
    times = np.where(reached < FOLLOW_UP_END, reached, STATIC)
    return pl.DataFrame(
        {
            "subject_id": people.subject_id[rows],
            "disease": pl.Series(NAMES).gather(disease),
            **{
                name: timestamps(times[:, stage]) for stage, name in enumerate(("preclinical", "diagnosed", "advanced"))
            },
        }
    )


def shard_of(parameters: Parameters, seed: int, first: int, last: int) -> Shard:
    """The subjects numbered first to last - 1 of the cohort, from birth to the last event."""
    people, record = people_of(parameters, seed, first, last), Record()
    _born(people, record)
    visits = with_sources(people, *visit_times(people, parameters.visits))
    admission = first_admission(people, parameters.stays)
    early = visits.times < admission[visits.rows]
    before = Record()
    see(people, visits.take(early), parameters.stays.tested, before)
    episodes = episodes_of(people, parameters.cause, before.batch(), admission)
    undergo(people, episodes, parameters.cause, record)
    stays = stays_of(people, parameters.stays, episodes.hazard)
    late = visits.take(~early)
    inside = _in_hospital(late, stays)
    see(people, late.take(~inside), parameters.stays.tested, record)
    _found_in_hospital(people, late.take(inside), record)
    admit(people, stays, parameters.stays, record)
    end = _ends(people, stays, record)
    batch = joined(before.batch(), record.batch())
    kept = batch.take((batch.times <= end[batch.rows]) & (batch.times < FOLLOW_UP_END))
    return Shard(
        frame_of(in_order(kept), people.subject_id),
        _subjects(people, episodes),
        _diseases(people),
        label_truth(people, parameters, stays, episodes, before.expected + record.expected),
    )


def _write_shard(parameters: Parameters, seed: int, subjects: int, folder: Path, number: int) -> tuple[int, int]:
    """Writes shard `number`; returns its events and how many subjects have an episode."""
    first = number * parameters.subjects_per_shard
    shard = shard_of(parameters, seed, first, min(first + parameters.subjects_per_shard, subjects))
    name = f"{number:05d}.parquet"
    shard.events.write_parquet(folder / "data" / name)
    for truth in TRUTH:
        getattr(shard, truth).write_parquet(folder / "truth" / truth / name)
    return shard.events.height, int(shard.subjects["has_episode"].sum())


def _in_parallel(task: Callable[[int], tuple[int, int]], shards: int, workers: int) -> Iterator[tuple[int, int]]:
    if min(workers, shards) == 1:
        yield from map(task, range(shards))
        return
    with ProcessPoolExecutor(min(workers, shards), get_context("spawn")) as pool:
        yield from pool.map(task, range(shards))


def simulate(parameters: Parameters, subjects: int, seed: int, out: Path, workers: int = 1) -> dict[str, int]:
    """Writes the cohort to the folder `out` as MEDS 0.4, the same bytes whatever the number of workers.

    Beside it lies the truth, in parquet files by shard: `truth/subjects` (habits and the planted cause),
    `truth/diseases` (when each stage began) and `truth/labels` (`truth.label_truth`). Returns the number of subjects,
    of events, and of subjects with an episode; raises InputError if nobody has room for one, or if not
    every subject can live at every level.
    """
    levels = len(parameters.levels.values) if parameters.levels else 1
    if subjects < 1:
        raise InputError(f"{subjects} subjects are no cohort. Ask for more.")
    if subjects % levels:
        raise InputError(f"{subjects:,} subjects cannot each live at {levels} levels. Ask for a multiple of {levels}.")
    settings = {"parameters": parameters.model_dump(mode="json"), "subjects": subjects, "seed": seed}
    facts = {"subjects": subjects, "events": 0, "with_episode": 0}
    shards = -(-subjects // parameters.subjects_per_shard)
    with new_artifact(out, "events", settings, {}, facts) as folder:
        for name in ("data", *(f"truth/{truth}" for truth in TRUTH)):
            (folder / name).mkdir(parents=True)
        task = partial(_write_shard, parameters, seed, subjects, folder)
        for events, with_episode in _in_parallel(task, shards, workers):
            facts["events"] += events
            facts["with_episode"] += with_episode
        if not facts["with_episode"]:
            cause = parameters.cause
            raise InputError(
                f"no timeline has room for the episode: cause.events is {cause.events:,}, cause.distance_tokens is "
                f"{cause.distance_tokens:,} and cause.distance_years {cause.distance_years:g}. Lower them, or simulate "
                "more subjects."
            )
        ids = np.arange(1, subjects + 1)
        about = {"dataset_name": SIMULATED, "dataset_version": __version__}
        write_metadata(folder, about, code_table(), hash_splits(ids, SPLITS))
    return facts
