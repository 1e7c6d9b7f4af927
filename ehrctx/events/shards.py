"""Reading shards, whole or in pieces: checked, in MEDS's total order, strings as integers of a dictionary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.events.meds import Dataset
from ehrctx.events.parquet import open_parquet, read_groups, read_others
from ehrctx.events.pieces import Piece, pieces_of
from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.events.rows import Coded, Rows, columns_of, rows_of, text_columns
from ehrctx.events.rules import (
    BEFORE_BIRTH,
    COLUMNS,
    FIRST_BIRTH,
    FIRST_DAY,
    LAST_DAY,
    LONGEST_CODE,
    LONGEST_LIFE,
    MEDS,
    NO_EVENTS,
    longest_life,
    refuse,
    subjects_in_two_shards,
    violations_of,
    wrong_columns,
)
from ehrctx.events.units import is_missing_unit
from ehrctx.events.violations import Violation

STATIC = int(np.iinfo(np.int64).min)  # the time of an event that has none
DAY = 86_400 * 1_000_000
TO_THE_DAYS_END = (23 * 60 + 59) * 60 * 1_000_000
MICROSECOND = timedelta(microseconds=1)


def whole_second(time: np.ndarray) -> np.ndarray:
    """Where on a timeline a clock that begins at this time begins: microseconds, at a full second."""
    return np.where(time == STATIC, STATIC, time // 1_000_000 * 1_000_000)


@dataclass(frozen=True)
class Lives:
    """Of each subject, how its events lie around its birth; arrays of length m, times in microseconds since 1970.

    A birth that lies farther before the last event than a life is long is not believed: it is ignored, and the birth
    is unknown. De-identified data sets move the births of the oldest so.
    """

    n_static: np.ndarray  # int64, events without a time
    n_ignored: np.ndarray  # int64, births; they come before all other timed events
    born: np.ndarray  # int64, the first other birth; STATIC where it is unknown
    first: np.ndarray  # int64, the first timed event that is not ignored; STATIC where there is none


@dataclass(frozen=True)
class Events:
    """Events in the total order: subjects as in the file; static first, then (time, file order).

    Subject i owns the events [offsets[i], offsets[i + 1]).
    """

    subjects: np.ndarray  # int64[m]
    offsets: np.ndarray  # int64[m + 1]
    time: np.ndarray  # int64[n], microseconds since 1970, STATIC where there is none
    code: Coded
    value: np.ndarray  # float32[n], NaN where there is none
    has_value: np.ndarray  # bool[n], True also where the value is NaN or infinite
    text: Coded
    unit: Coded
    visit: pl.Series  # whatever type the column has; null where the profile names none

    def __len__(self) -> int:
        return len(self.time)

    def lives(self, birth: str, longest: timedelta = LONGEST_LIFE) -> Lives:
        """`birth` is the code of births; one more than `longest` before the subject's last event is ignored."""
        born = np.full(len(self.subjects), STATIC, dtype=np.int64)
        n_ignored = np.zeros(len(self.subjects), dtype=np.int64)
        of_name = self.code.names.index_of(birth)
        if of_name is not None and len(self):
            rows = np.flatnonzero((self.code.ids == of_name) & (self.time != STATIC))
            subject = np.searchsorted(self.offsets, rows, side="right") - 1
            last = self.time[self.offsets[1:] - 1]
            is_ignored = last[subject] - whole_second(self.time[rows]) > longest // MICROSECOND
            n_ignored = np.bincount(subject[is_ignored], minlength=len(self.subjects))
            kept = np.flatnonzero(~is_ignored)[::-1]  # last to first, as times ascend within a subject
            born[subject[kept]] = self.time[rows[kept]]
        timed = np.concatenate([[0], np.cumsum(self.time != STATIC)])
        n_static = np.diff(self.offsets) - (timed[self.offsets[1:]] - timed[self.offsets[:-1]])
        first = self.offsets[:-1] + n_static + n_ignored
        first = np.append(self.time, STATIC)[np.where(first < self.offsets[1:], first, -1)]
        return Lives(n_static, n_ignored, born, first)

    def frame(self) -> pl.DataFrame:
        """subject_id int64, time datetime[us] (null = static), code, numeric_value float32, text_value, unit, visit,
        event uint32 (position within the subject)."""
        lengths = np.diff(self.offsets)
        time, value = pl.Series(self.time), pl.Series(self.value)
        return pl.DataFrame(
            {
                "subject_id": np.repeat(self.subjects, lengths),
                "time": time.set(pl.Series(self.time == STATIC), None).cast(pl.Datetime("us")),
                "code": self.code.strings(),
                "numeric_value": value.set(pl.Series(~self.has_value), None),
                "text_value": self.text.strings(),
                "unit": self.unit.strings(),
                "visit": self.visit,
                "event": (np.arange(len(self)) - np.repeat(self.offsets[:-1], lengths)).astype(np.uint32),
            }
        )


def _unit(stated: Coded, code: Coded, patterns: tuple[str, ...]) -> Coded:
    """The stated unit, else the last //segment of codes that match `patterns`; "" and a segment UNK are none."""
    is_missing = stated.names.to_frame("unit").select(is_missing_unit(pl.col("unit")))["unit"].to_numpy()
    if not patterns and not is_missing.any():
        return stated
    ids = np.where(stated.flagged(~is_missing), stated.ids, -1)
    segments = pl.col("code").str.split("//")
    last = pl.when(matches(pl.col("code"), patterns) & (segments.list.len() > 2)).then(segments.list.last())
    suffixes = code.names.to_frame("code").select(suffix=pl.when(~last.is_in(["", "UNK"])).then(last))["suffix"]
    names = pl.concat([stated.names, suffixes.drop_nulls()]).unique(maintain_order=True)
    place = dict(zip(names.to_list(), range(len(names)), strict=True))
    of_code = np.array([-1 if s is None else place[s] for s in suffixes.to_list()] + [-1], dtype=np.int32)
    return Coded(np.where(ids < 0, of_code[code.ids], ids).astype(np.int32), names)


def _micros(day: datetime) -> int:
    return (day.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND


def _certainly_dated(events: Events, birth: str, longest: timedelta) -> bool:
    """Whether the times, which ascend within each subject, certainly break no rule of `violations_of`."""
    lives = events.lives(birth, longest)
    timed = lives.first != STATIC
    first, born = lives.first[timed], lives.born[timed]
    last = events.time[events.offsets[1:] - 1][timed]
    earliest = events.time[(events.offsets[:-1] + lives.n_static)[timed]]
    return not (
        (first < _micros(FIRST_DAY)).any()
        or (earliest < _micros(FIRST_BIRTH)).any()
        or (last >= _micros(LAST_DAY)).any()
        or (last - whole_second(first) > longest // MICROSECOND).any()
        or ((born != STATIC) & (first < born - BEFORE_BIRTH // MICROSECOND)).any()
    )


def _certainly_valid(events: Events, birth: str, longest: timedelta) -> bool:
    """Whether the rows, in the order of the file, certainly break no rule of `violations_of`: the quick way."""
    if not len(events):
        return True
    used = np.zeros(len(events.code.names) + 1, dtype=bool)
    used[events.code.ids] = True
    length = events.code.names.filter(pl.Series(used[:-1])).str.len_bytes()
    changes = np.zeros(len(events) + 1, dtype=bool)
    changes[events.offsets] = True
    return not (
        used[-1]
        or (length == 0).any()
        or (length > LONGEST_CODE).any()
        or len(np.unique(events.subjects)) < len(events.subjects)
        or ((events.time[1:] < events.time[:-1]) & ~changes[1:-1]).any()
        or not _certainly_dated(events, birth, longest)
    )


def _in_file_order(rows: Rows) -> Events | None:
    """The rows as events; None where a subject is missing or does not fit into 64 bits."""
    subject = rows.subject.cast(pl.Int64, strict=False)
    if subject.null_count():
        return None
    by_row = subject.to_numpy()
    starts = np.flatnonzero(np.append(True, by_row[1:] != by_row[:-1])[: len(by_row)])
    return Events(
        subjects=by_row[starts],
        offsets=np.append(starts, len(by_row)).astype(np.int64),
        time=rows.time.cast(pl.Int64).fill_null(STATIC).to_numpy(),
        code=rows.code,
        value=rows.value.fill_null(float("nan")).to_numpy(),
        has_value=rows.value.is_not_null().to_numpy(),
        text=rows.text,
        unit=rows.unit,
        visit=rows.visit,
    )


@dataclass(frozen=True)
class Examined:
    """A piece as it lies in the file, and every rule that it breaks."""

    rows: Rows | None  # None where a column is wrong or not UTF-8
    events: Events | None  # in the order of the file; None, too, where a subject is missing
    violations: list[Violation]


def examine(dataset: Dataset, piece: Piece, profile: DatasetProfile = MEDS, visits: bool = False) -> Examined:
    """One piece, with the columns that the profile names: the visits only if asked for. Raises BrokenFile where the
    file cannot be read."""
    name = dataset.name_of(piece.shard)
    file = open_parquet(piece.shard, name)
    schema = file.schema_arrow
    if wrong := wrong_columns(schema, name, profile, is_empty=file.metadata.num_rows == 0):
        return Examined(None, None, wrong)
    file = open_parquet(piece.shard, name, read_dictionary=text_columns(schema, profile))
    table = read_groups(file, name, piece.row_groups, columns_of(schema, profile, visits))
    rows, broken = rows_of(table.slice(piece.skipped, piece.n_rows), profile, name, piece.first_row)
    if rows is None:
        return Examined(None, None, broken)
    events, longest = _in_file_order(rows), longest_life(profile)
    if events is not None and _certainly_valid(events, profile.birth, longest):
        return Examined(rows, events, [])
    return Examined(rows, events, violations_of(rows.frame(), name, profile.birth, piece.first_row, longest))


def _known_at(events: Events, profile: DatasetProfile) -> np.ndarray:
    """The time when each event is known; int64[n]. Births stay, so that nothing of the first day precedes them."""
    if not profile.date_only:
        return events.time
    is_birth = events.code.flagged((events.code.names == profile.birth).to_numpy())
    moved = events.code.matching(profile.date_only) & ~is_birth & (events.time % DAY == 0) & (events.time != STATIC)
    return np.where(moved, events.time + TO_THE_DAYS_END, events.time)


def _sorted(events: Events, time: np.ndarray, unit: Coded) -> Events:
    """The events with these times and units, in the total order."""
    run = np.repeat(np.arange(len(events.subjects)), np.diff(events.offsets))
    if not ((time[1:] < time[:-1]) & (run[1:] == run[:-1])).any():
        return replace(events, time=time, unit=unit)
    order = np.lexsort((time, run))
    return Events(
        subjects=events.subjects,
        offsets=events.offsets,
        time=time[order],
        code=Coded(events.code.ids[order], events.code.names),
        value=events.value[order],
        has_value=events.has_value[order],
        text=Coded(events.text.ids[order], events.text.names),
        unit=Coded(unit.ids[order], unit.names),
        visit=events.visit.gather(order),
    )


def read_piece(dataset: Dataset, piece: Piece, profile: DatasetProfile, visits: bool = False) -> Events:
    """The events of one piece, with their visits if asked for.

    Those of `profile.date_only` codes that are stamped 00:00:00 are moved to 23:59:00 of their day, when they are
    known. Raises InputError, with file and row, at the first rule that the rows break (see `rules`).
    """
    examined = examine(dataset, piece, profile, visits)
    refuse(examined.violations, dataset)
    events = examined.events
    assert events is not None, "a subject is missing, and no rule says so"
    return _sorted(events, _known_at(events, profile), _unit(events.unit, events.code, profile.unit_in_code))


def _alone(dataset: Dataset, shard: Path) -> Dataset:
    return replace(dataset, shards=(shard,))


def read_shard(dataset: Dataset, shard: Path, profile: DatasetProfile) -> pl.DataFrame:
    """One shard's events as a frame (see `Events.frame`), with their visits. Raises as `read_piece`."""
    (piece,) = pieces_of(_alone(dataset, shard), rows=2**62)
    return read_piece(dataset, piece, profile, visits=True).frame()


def _violations_between(subjects: list[tuple[str, np.ndarray]]) -> list[Violation]:
    """What no shard shows by itself; `subjects` are (name of the file, distinct subject_ids)."""
    return subjects_in_two_shards(subjects) if any(len(ids) for _, ids in subjects) else [NO_EVENTS]


def read_shards(dataset: Dataset, profile: DatasetProfile) -> Iterator[pl.DataFrame]:
    """`read_shard` of each shard in turn. Raises InputError after the last: a subject is in two, or all are empty."""
    subjects = []
    for shard in dataset.shards:
        events = read_shard(dataset, shard, profile)
        subjects.append((dataset.name_of(shard), events["subject_id"].unique().to_numpy()))
        yield events
    refuse(_violations_between(subjects), dataset)


def read_subjects(dataset: Dataset) -> np.ndarray:
    """All subjects with events, ascending; int64[m]. Raises InputError at the first rule of MEDS that a row breaks."""
    subjects = []
    for piece in pieces_of(dataset):
        examined = examine(dataset, piece)
        refuse(examined.violations, dataset)
        assert examined.events is not None
        subjects.append((dataset.name_of(piece.shard), examined.events.subjects))
    refuse(_violations_between(subjects), dataset)
    return np.sort(np.concatenate([ids for _, ids in subjects]))


def read_valid(dataset: Dataset, shard: Path) -> pl.DataFrame:
    """One shard's rows as they are, with all columns that polars holds; those of MEDS in the types of `Rows`.

    Raises InputError, with file and row, at the first rule of MEDS that they break.
    """
    name, parts = dataset.name_of(shard), []
    for piece in pieces_of(_alone(dataset, shard)):
        examined = examine(dataset, piece)
        refuse(examined.violations, dataset)
        assert examined.rows is not None
        parts.append(examined.rows.frame())
    rows, columns = pl.concat(parts), open_parquet(shard, name).schema_arrow.names
    others = read_others(shard, name, COLUMNS)
    return rows.select(column for column in COLUMNS if column in columns).hstack(others.get_columns())


def shard_with(dataset: Dataset, subject_id: int) -> Path | None:
    """The first shard that holds this subject, if there is one; no other column is read."""
    for shard in dataset.shards:
        name = dataset.name_of(shard)
        file = open_parquet(shard, name)
        refuse(wrong_columns(file.schema_arrow, name, is_empty=file.metadata.num_rows == 0), dataset)
        for group in range(file.num_row_groups):
            ids = pl.Series(read_groups(file, name, [group], ["subject_id"]).column(0)).cast(pl.Int64, strict=False)
            if (ids == subject_id).any():
                return shard
    return None
