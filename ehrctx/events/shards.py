"""Reading shards, whole or in pieces: checked, in MEDS's total order, strings as integers of a dictionary.

Parquet stores a column of codes as a dictionary and integers. Read so, nothing is done once per event that can be done
once per code: units, patterns and vocabularies are looked up for the names in the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ehrctx.errors import InputError
from ehrctx.events.meds import BEFORE_BIRTH, LONGEST_CODE, Dataset, refuse, unreadable, violations_of, wrong_columns
from ehrctx.events.pieces import Piece, open_parquet, pieces_of, read_groups
from ehrctx.events.profile import DatasetProfile, matches

STATIC = int(np.iinfo(np.int64).min)  # the time of an event that has none
DAY = 86_400 * 1_000_000
TO_THE_DAYS_END = (23 * 60 + 59) * 60 * 1_000_000


@dataclass(frozen=True)
class Coded:
    """A column of strings: `names[ids[i]]`, and -1 for null. `names` are distinct."""

    ids: np.ndarray  # int32[n]
    names: pl.Series

    def strings(self) -> pl.Series:
        return self.names.gather(pl.Series(self.ids, dtype=pl.Int64).replace(-1, None))

    def matching(self, patterns: tuple[str, ...]) -> np.ndarray:
        """bool[n]: whether each is one of `patterns` (see `profile.matches`)."""
        named = self.names.alias("code").to_frame().with_columns(_matches=matches(pl.col("code"), patterns))
        return self.flagged(named["_matches"].to_numpy())

    def flagged(self, of_names: np.ndarray) -> np.ndarray:
        """bool[n]: what bool[len(names)] says of each; False for null."""
        return np.append(of_names, False)[self.ids]


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

    def births(self, birth: str) -> np.ndarray:
        """Each subject's first birth (microseconds since 1970), STATIC without one; int64[m]."""
        found = np.full(len(self.subjects), STATIC, dtype=np.int64)
        of_name = self.code.names.index_of(birth)
        if of_name is None:
            return found
        rows = np.flatnonzero((self.code.ids == of_name) & (self.time != STATIC))
        # last to first, as times ascend within a subject
        found[np.searchsorted(self.offsets, rows[::-1], side="right") - 1] = self.time[rows[::-1]]
        return found

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


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or bool(value.decode()) or True
    except UnicodeDecodeError:
        return False


def _in_utf8(column: pa.ChunkedArray, of: str, name: str, first_row: int) -> pa.ChunkedArray:
    """The column, all of whose strings are UTF-8. Raises InputError with the first row where one is not.

    A dictionary may hold strings of rows outside this piece: those that are not UTF-8 are left out of it.
    """
    chunks = []
    for chunk in column.chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        try:
            (chunk.dictionary if is_coded else chunk).validate(full=True)
        except pa.ArrowInvalid:
            plain = chunk.dictionary_decode() if is_coded else chunk
            for row, value in enumerate(plain.cast(pa.binary()).to_pylist(), first_row + 1):
                if not _is_utf8(value):
                    raise InputError(f"{name}, row {row:,}: {of} is not UTF-8 text. Write the file in UTF-8.") from None
            chunk = pc.dictionary_encode(plain)
        chunks.append(chunk)
        first_row += len(chunk)
    return pa.chunked_array(chunks, column.type) if chunks else column


def _coded(column: pa.ChunkedArray) -> Coded:
    if pa.types.is_null(column.type) or not column.num_chunks:
        return Coded(np.full(len(column), -1, dtype=np.int32), pl.Series([], dtype=pl.String))
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    column = column.unify_dictionaries()
    ids = [chunk.indices.cast(pa.int32()) for chunk in column.chunks]
    filled = [(pc.fill_null(own, -1) if own.null_count else own).to_numpy(zero_copy_only=False) for own in ids]
    return Coded(np.concatenate(filled), pl.Series(column.chunk(0).dictionary.cast(pa.large_string())))


def _unit(stated: Coded, code: Coded, patterns: tuple[str, ...]) -> Coded:
    """The stated unit, else the last //segment of codes that match `patterns`; "" and a segment UNK are none."""
    if not patterns and not (stated.names == "").any():
        return stated
    ids = np.where(stated.flagged((stated.names != "").to_numpy()), stated.ids, -1)
    segments = pl.col("code").str.split("//")
    suffix = pl.when(matches(pl.col("code"), patterns) & (segments.list.len() > 2)).then(segments.list.last())
    suffixes = code.names.alias("code").to_frame().with_columns(_suffix=suffix)["_suffix"]
    names = pl.concat([stated.names, suffixes.drop_nulls()]).unique(maintain_order=True)
    names = names.filter((names != "") & (names != "UNK") | names.is_in(stated.names.implode()))
    place = dict(zip(names.to_list(), range(len(names)), strict=True))
    of_code = np.array([-1 if s in (None, "", "UNK") else place[s] for s in suffixes.to_list()] + [-1], dtype=np.int32)
    return Coded(np.where(ids < 0, of_code[code.ids], ids).astype(np.int32), names)


def _is_before_birth(events: Events, birth: str) -> np.ndarray:
    """Of each subject, whether an event lies more than BEFORE_BIRTH before its birth; bool[m]."""
    born = events.births(birth)
    if (born == STATIC).all():
        return np.zeros(len(born), dtype=bool)
    timed = np.where(events.time == STATIC, np.iinfo(np.int64).max, events.time)
    return (born != STATIC) & (np.minimum.reduceat(timed, events.offsets[:-1]) < born - BEFORE_BIRTH.days * DAY)


def _certainly_valid(events: Events, birth: str) -> bool:
    """Whether the rows, in the order of the file, break no rule of `violations_of`: the quick way to say yes."""
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
        or _is_before_birth(events, birth).any()
    )


def _in_file_order(table: pa.Table, unit: str | None, visit: str | None) -> Events | None:
    """The rows of a table whose columns are MEDS's; None where a subject is missing or does not fit into 64 bits."""
    subject = pl.Series(table["subject_id"]).cast(pl.Int64, strict=False)
    if subject.null_count():
        return None
    by_row = subject.to_numpy()
    starts = np.flatnonzero(np.append(True, by_row[1:] != by_row[:-1])[: len(by_row)])
    time = pl.Series(table["time"]).cast(pl.Datetime("us")).cast(pl.Int64)
    none = pa.chunked_array([pa.nulls(len(table))])
    columns = table.column_names
    value = pl.Series(table["numeric_value"] if "numeric_value" in columns else none).cast(pl.Float32)
    code = _coded(table["code"])
    return Events(
        subjects=by_row[starts],
        offsets=np.append(starts, len(by_row)).astype(np.int64),
        time=time.fill_null(STATIC).to_numpy(),
        code=code,
        value=value.fill_null(float("nan")).to_numpy(),
        has_value=value.is_not_null().to_numpy(),
        text=_coded(table["text_value"] if "text_value" in columns else none),
        unit=_coded(table[unit] if unit else none),
        visit=pl.Series(table[visit]) if visit else pl.repeat(None, len(table), dtype=pl.Int64, eager=True),
    )


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
        return Events(**{**vars(events), "time": time, "unit": unit})
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
    known. Raises InputError, with file and row, at the first rule of MEDS that the rows break.
    """
    name = dataset.name_of(piece.shard)
    schema = open_parquet(piece.shard, name).schema_arrow
    refuse(wrong_columns(pl.Schema(schema), name), dataset)
    unit, visit = (column if column in schema.names else None for column in (profile.unit_column, profile.visit_column))
    visit = visit if visits else None
    wanted = ("subject_id", "time", "code", "numeric_value", "text_value", unit, visit)
    columns = [str(column) for column in dict.fromkeys(wanted) if column in schema.names]
    strings = [c for c in columns if c in ("code", "text_value", unit) and not pa.types.is_null(schema.field(c).type)]
    file = open_parquet(piece.shard, name, read_dictionary=strings)
    table = read_groups(file, name, piece.row_groups, columns)
    table = table.slice(piece.skipped, piece.n_rows)
    for column in strings:
        checked = _in_utf8(table[column], column, name, piece.first_row)
        table = table.set_column(table.column_names.index(column), column, checked)
    events = _in_file_order(table, unit, visit)
    if events is None or not _certainly_valid(events, profile.birth):
        refuse(violations_of(_rows(piece, name), name, profile.birth, piece.first_row), dataset)
        raise AssertionError(f"{name}: the quick check and the rules of MEDS disagree")
    for key in ("visit_column", "unit_column"):
        column = getattr(profile, key)
        if column and column not in schema.names:
            raise InputError(
                f"{name}: no column {column!r}, which the profile {profile.name!r} names as {key}. Mend the profile."
            )
    units = _unit(events.unit, events.code, profile.unit_in_code)
    return _sorted(events, _known_at(events, profile), units)


def _rows(piece: Piece, name: str) -> pl.DataFrame:
    """The raw rows of a piece."""
    try:
        return pl.scan_parquet(piece.shard, glob=False).slice(piece.first_row, piece.n_rows).collect()
    except (pl.exceptions.ComputeError, OSError) as error:
        raise unreadable(name, error) from None


def read_shard(dataset: Dataset, shard: Path, profile: DatasetProfile) -> pl.DataFrame:
    """One shard's events as a frame (see `Events.frame`), with their visits. Raises as `read_piece`."""
    (piece,) = pieces_of(Dataset(dataset.root, (shard,)), rows=2**62)
    return read_piece(dataset, piece, profile, visits=True).frame()
