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
from ehrctx.events.meds import SPLITS
from ehrctx.events.shards import STATIC, Events
from ehrctx.timelines.counting_numba import added_up, factorize, seconds_since, sums
from ehrctx.timelines.statistics import ENTRIES, VALUES, WHOLE, Statistics, measure_of, ordered_bits

KINDS = ("code", "text", "number")
CODE, TEXT, NUMBER = range(len(KINDS))
LONGEST_TEXT = 200  # bytes: longer ones are notes, which no two events share; such an event is its code
MAX_SECONDS = 2**32 - 1

COUNTED_SUBJECT = np.dtype(
    [
        ("subject_id", "<i8"),
        ("split", "<U8"),
        ("origin", "<M8[us]"),  # birth, else the first timed event; NaT where nothing is timed
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


def _entries(events: Events) -> tuple[np.ndarray, pl.DataFrame, np.ndarray]:
    """Each event's entry (int32[n]), their TABLE, and each event's kind (uint8[n])."""
    finite = events.has_value & np.isfinite(events.value)
    length = events.text.names.str.len_bytes().to_numpy()
    has_text = events.text.flagged((length > 0) & (length <= LONGEST_TEXT))
    # a number wins over a text: a result is often given as both
    kind = np.where(finite, NUMBER, np.where(has_text, TEXT, CODE)).astype(np.uint8)
    detail = np.where(finite, events.unit.ids, np.where(has_text, events.text.ids, -1)).astype(np.int64) + 1
    keys = kind.astype(np.uint64) << np.uint64(62) | events.code.ids.astype(np.uint64) << np.uint64(31)
    entry, first = factorize(keys | detail.astype(np.uint64))
    n = len(first)
    table = pl.DataFrame(
        {
            "kind": pl.Series(KINDS, dtype=pl.String).gather(kind[first]),
            "code": events.code.names.gather(events.code.ids[first]),
            "unit": events.unit.names.gather(_where(kind[first] == NUMBER, events.unit.ids[first])),
            "text": events.text.names.gather(_where(kind[first] == TEXT, events.text.ids[first])),
            "not_finite": np.bincount(entry[events.has_value & ~finite], minlength=n),
            "long_text": np.bincount(entry[events.text.flagged(length > LONGEST_TEXT) & ~finite], minlength=n),
        },
        schema=TABLE,
    )
    return entry, table, kind


def _where(condition: np.ndarray, ids: np.ndarray) -> pl.Series:
    return pl.Series(np.where(condition, ids, -1), dtype=pl.Int64).replace(-1, None)


def _subjects(events: Events, split: np.ndarray, birth: str) -> np.ndarray:
    """COUNTED_SUBJECT[m]."""
    found = np.zeros(len(events.subjects), dtype=COUNTED_SUBJECT)
    born = events.births(birth)
    n_events = np.diff(events.offsets)
    timed = np.concatenate([[0], np.cumsum(events.time != STATIC)])
    n_static = n_events - (timed[events.offsets[1:]] - timed[events.offsets[:-1]])
    # the first timed event follows the static ones
    first = np.append(events.time, STATIC)[np.where(n_static < n_events, events.offsets[:-1] + n_static, -1)]
    origin = np.where(born == STATIC, first, born)
    found["subject_id"], found["split"], found["n_events"], found["n_static"] = (
        events.subjects,
        split,
        n_events,
        n_static,
    )
    found["origin"] = np.where(origin == STATIC, STATIC, origin // 1_000_000 * 1_000_000).view("<M8[us]")
    found["born"] = born != STATIC
    return found


def splits_of(subjects: np.ndarray, splits: pl.DataFrame) -> np.ndarray:
    """The split of each subject id; str[m]. `splits` is ordered by subject_id."""
    ids = splits["subject_id"].to_numpy()
    place = np.minimum(np.searchsorted(ids, subjects), max(len(ids) - 1, 0))
    known = ids[place] == subjects if len(ids) else np.zeros(len(subjects), dtype=bool)
    if not known.all():
        raise InputError(f"{(~known).sum():,} subjects have no split. Make the splits again.")
    which = splits["split"].cast(pl.Enum(SPLITS)).to_physical().to_numpy()
    return np.array(SPLITS)[which[place]]


def count_piece(events: Events, split: np.ndarray, birth: str) -> tuple[Counted, Statistics, int]:
    """One piece as integers, the statistics of its train subjects, and how many events lie before the origin.

    `split` is each subject's (str[m]), `birth` the code of births. Raises InputError where a life is too long.
    """
    entry, table, kind = _entries(events)
    subjects = _subjects(events, split, birth)
    seconds, early, most = seconds_since(events.time, STATIC, events.offsets, subjects["origin"].view(np.int64))
    if most > MAX_SECONDS:
        raise InputError("an event lies more than 136 years after its subject's birth. Mend its time or the birth.")
    value = np.where(kind == NUMBER, events.value, np.float32(np.nan))
    counted = Counted(table, entry, value, seconds.astype(np.uint32), subjects)
    return counted, _statistics(counted, events.offsets, kind), early


def _statistics(counted: Counted, offsets: np.ndarray, kind: np.ndarray) -> Statistics:
    train = counted.subjects["split"] == "train"
    weight, count, n_subjects = sums(counted.entry, offsets, train, counted.table.height, WHOLE)
    table = counted.table.with_columns(
        weight=pl.Series(weight), count=pl.Series(count), subjects=pl.Series(n_subjects)
    ).filter(pl.col("count") > 0)
    numbers = (
        counted.table.with_row_index("entry").filter(pl.col("kind") == KINDS[NUMBER]).select("entry", "code", "unit")
    )
    measure = np.zeros(counted.table.height, dtype=np.uint64)
    measure[numbers["entry"].to_numpy()] = [measure_of(code, unit) for _, code, unit in numbers.iter_rows()]
    n_events = np.diff(offsets)
    of_event = np.where(train, (WHOLE + n_events // 2) // np.maximum(n_events, 1), 0)
    rows = np.flatnonzero((kind == NUMBER) & np.repeat(train, n_events))
    entry, cell = counted.entry[rows], ordered_bits(counted.value[rows])
    ids, first = factorize(entry.astype(np.uint64) << np.uint64(32) | cell)
    summed, events = added_up(ids, np.repeat(of_event, n_events)[rows], len(first))
    values = {"measure": measure[entry[first]], "cell": cell[first], "level": 0, "weight": summed, "count": events}
    return Statistics(table.select(*ENTRIES), pl.DataFrame(values, schema=VALUES), int(train.sum()))
