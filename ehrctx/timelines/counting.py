"""The one pass over the events: each becomes the integer of its entry, and the train split's entries are counted.

An entry is what a tokenizer can tell apart of an event: a code without a value, a (code, text), or a number of a
(code, unit). A piece of the data set knows its entries by numbers of its own; what is left of an event is this number,
its value and its second, 12 bytes. Vocabularies are fitted from the sums and applied to these, so events are read,
checked and sorted once, whatever comes after.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.rows import Coded
from ehrctx.events.rules import SPLITS
from ehrctx.events.shards import STATIC, Events, Lives, whole_second
from ehrctx.study import Privacy
from ehrctx.timelines.counting_numba import CODE, NUMBER, TEXT, entries_of, seconds_since, tally
from ehrctx.timelines.statistics import ENTRIES, VALUES, WHOLE, Statistics, measure_of

KINDS = ("code", "text", "number")
LONGEST_TEXT = 200  # bytes: longer ones are notes, which no two events share; such an event is its code
MAX_SECONDS = 2**32 - 1

COUNTED_SUBJECT = np.dtype(
    [
        ("subject_id", "<i8"),
        ("split", "<U8"),
        ("origin", "<M8[us]"),  # birth if it is known, else the first timed event; NaT where nothing is timed
        ("born", "?"),
        ("n_events", "<i8"),
        ("n_static", "<i8"),  # events
    ]
)
TABLE: dict[str, Any] = {
    "kind": pl.String,
    "code": pl.String,
    "unit": pl.String,
    "text": pl.String,
    "not_finite": pl.Int64,  # events whose value is NaN or infinite, which is read as none
    "long_text": pl.Int64,  # events whose text is a note, which is read as none
}


@dataclass(frozen=True)
class Counted:
    """A piece's events in the total order, as integers. Subjects own consecutive rows, in the order of `subjects`."""

    table: pl.DataFrame  # TABLE; row i describes the entry i
    entry: np.ndarray  # int32[n]
    value: np.ndarray  # float32[n], NaN where there is none
    seconds: np.ndarray  # uint32[n], rounded up, since the subject's origin; 0 for static events
    subjects: np.ndarray  # COUNTED_SUBJECT[m]

    def offsets(self) -> np.ndarray:
        """Subject i owns rows [offsets[i], offsets[i + 1]); int64[m + 1]."""
        return np.concatenate([[0], np.cumsum(self.subjects["n_events"])]).astype(np.int64)

    def write(self, folder: Path) -> None:
        folder.mkdir()
        self.table.write_parquet(folder / "table.parquet")
        for name in ("entry", "value", "seconds", "subjects"):
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def read(cls, folder: Path) -> Counted:
        arrays = {name: np.load(folder / f"{name}.npy") for name in ("entry", "value", "seconds", "subjects")}
        return cls(table=pl.read_parquet(folder / "table.parquet"), **arrays)


def _entries(events: Events) -> tuple[np.ndarray, np.ndarray, pl.DataFrame]:
    """Each event's entry (int32[n]) and value (float32[n]), and the entries' TABLE."""
    length = events.text.names.str.len_bytes().to_numpy()
    is_category = (length > 0) & (length <= LONGEST_TEXT)
    entry, value, first = entries_of(
        events.code.ids, events.has_value, events.value, events.unit.ids, events.text.ids, is_category,
        len(events.code.names),
    )  # fmt: skip
    is_number, has_category = np.isfinite(value[first]), np.append(is_category, False)[events.text.ids[first]]
    kind = np.where(is_number, NUMBER, np.where(has_category, TEXT, CODE))
    not_finite = np.flatnonzero(events.has_value & ~np.isfinite(events.value))
    notes = np.flatnonzero(events.text.flagged(length > LONGEST_TEXT) & np.isnan(value))
    table = pl.DataFrame(
        {
            "kind": pl.Series(KINDS, dtype=pl.String).gather(kind),
            "code": events.code.names.gather(events.code.ids[first]),
            "unit": Coded(np.where(kind == NUMBER, events.unit.ids[first], -1), events.unit.names).strings(),
            "text": Coded(np.where(kind == TEXT, events.text.ids[first], -1), events.text.names).strings(),
            "not_finite": np.bincount(entry[not_finite], minlength=len(first)),
            "long_text": np.bincount(entry[notes], minlength=len(first)),
        },
        schema=TABLE,
    )
    return entry, value, table


def _subjects(events: Events, split: np.ndarray, lives: Lives) -> np.ndarray:
    """COUNTED_SUBJECT[m]."""
    subjects = np.zeros(len(events.subjects), dtype=COUNTED_SUBJECT)
    origin = np.where(lives.born == STATIC, lives.first, lives.born)
    subjects["subject_id"], subjects["split"] = events.subjects, split
    subjects["n_events"], subjects["n_static"] = np.diff(events.offsets), lives.n_static
    subjects["origin"] = whole_second(origin).view("<M8[us]")
    subjects["born"] = lives.born != STATIC
    return subjects


def splits_of(subjects: np.ndarray, splits: pl.DataFrame, privacy: Privacy) -> np.ndarray:
    """The split of each subject id; str[m]. `splits` is ordered by subject_id."""
    ids = splits["subject_id"].to_numpy()
    place = np.minimum(np.searchsorted(ids, subjects), max(len(ids) - 1, 0))
    known = ids[place] == subjects if len(ids) else np.zeros(len(subjects), dtype=bool)
    if not known.all():
        n = privacy.shown(int((~known).sum()))
        raise InputError(f"{n} subjects have no split. Make the splits again.")
    which = splits["split"].cast(pl.Enum(SPLITS)).to_physical().to_numpy()
    return np.array(SPLITS)[which[place]]


@dataclass(frozen=True)
class Unplaced:
    """What could not be placed on its subject's clock."""

    events_before_origin: int = 0  # of the last weeks before birth: they happen at its second 0
    births_too_early: int = 0  # subjects whose birth is ignored (see `shards.Lives`), and unknown

    def __add__(self, other: Unplaced) -> Unplaced:
        return Unplaced(
            self.events_before_origin + other.events_before_origin, self.births_too_early + other.births_too_early
        )


def count_piece(events: Events, split: np.ndarray, birth: str) -> tuple[Counted, Statistics, Unplaced]:
    """One piece as integers, the statistics of its train subjects, and what has no place on its subject's clock.

    `split` is each subject's (str[m]), `birth` the code of births.
    """
    entry, value, table = _entries(events)
    lives = events.lives(birth)
    subjects = _subjects(events, split, lives)
    seconds, early, most = seconds_since(events.time, STATIC, events.offsets, subjects["origin"].view(np.int64))
    assert most <= MAX_SECONDS, "a life is too long, and no rule says so"
    counted = Counted(table, entry, value, seconds, subjects)
    unplaced = Unplaced(early - int(lives.n_ignored.sum()), int((lives.n_ignored > 0).sum()))
    return counted, _statistics(counted), unplaced


def _statistics(counted: Counted) -> Statistics:
    train = counted.subjects["split"] == "train"
    is_number = (counted.table["kind"] == KINDS[NUMBER]).to_numpy()
    weight, count, keys, key_weight, key_count = tally(
        counted.entry, counted.value.view(np.uint32), is_number, counted.offsets(), train, WHOLE
    )
    sums = {"weight": pl.Series(weight), "count": pl.Series(count)}
    entries = counted.table.with_columns(**sums).filter(pl.col("count") > 0).select(*ENTRIES)
    measure = np.zeros(counted.table.height, dtype=np.uint64)
    numbers = counted.table.filter(kind=KINDS[NUMBER]).select("code", "unit")
    measure[is_number] = [measure_of(code, unit) for code, unit in numbers.iter_rows()]
    values = {
        "measure": measure[(keys >> np.uint64(32)).astype(np.int64)],
        "cell": (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        "level": np.zeros(len(keys), dtype=np.uint8),
        "weight": key_weight,
        "count": key_count,
    }
    return Statistics(entries, pl.DataFrame(values, schema=VALUES), int(train.sum()))
