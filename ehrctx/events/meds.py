"""Reading and checking MEDS data sets (schemas 0.3 and 0.4) as polars frames in a defined total order.

0.3 and 0.4 differ in what may be absent (`numeric_value` is optional in 0.4, `text_value` a custom column in 0.3) and
in string widths; both are read here, and every reader downstream sees the same columns.

Source: https://github.com/Medical-Event-Data-Standard/meds
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import MANIFEST, Files, Source
from ehrctx.errors import InputError

SPLITS = ("train", "tuning", "held_out")
SPLITS_FILE = Path("metadata/subject_splits.parquet")
CODES_FILE = Path("metadata/codes.parquet")
OLD_NAMES = {"patient_id": "subject_id", "timestamp": "time"}  # MEDS before 0.3
ROWS_NAMED = 5
LONGEST_CODE = 500  # bytes; longer ones are notes or joined columns, which no vocabulary can hold
BEFORE_BIRTH = timedelta(
    days=30
)  # records of a pregnancy's last weeks; earlier ones are another person's, or a wrong date
BIRTH = "MEDS_BIRTH"


@dataclass(frozen=True)
class Violation:
    """One broken rule of MEDS in one file. `rows` counts from 1; `n` is how many rows break it."""

    file: str
    rows: tuple[int, ...]
    n: int
    problem: str
    remedy: str

    def __str__(self) -> str:
        more = f" and {self.n - len(self.rows):,} more" if self.n > len(self.rows) else ""
        where = f", row{'s' if self.n > 1 else ''} {', '.join(f'{r:,}' for r in self.rows)}{more}" if self.n else ""
        return f"{self.file}{where}: {self.problem} {self.remedy}"


@dataclass(frozen=True)
class Dataset:
    """A MEDS data set on disk: its folder and its shards in a fixed order."""

    root: Path
    shards: tuple[Path, ...]

    def name_of(self, shard: Path) -> str:
        return shard.relative_to(self.root).as_posix()

    def files(self) -> list[Path]:
        """The files that its content depends on."""
        return [*self.shards, *(self.root / f for f in (SPLITS_FILE, CODES_FILE) if (self.root / f).is_file())]

    def source(self) -> Source:
        """What an artefact that is made from it records: itself, if it is an artefact, else its files."""
        return self.root if (self.root / MANIFEST).is_file() else Files(self.root, tuple(self.files()))


def open_dataset(root: Path) -> Dataset:
    """The data set in the folder `root`, whose events are in `root/data/**/*.parquet`."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"no such folder: {root}. Give the folder of a MEDS data set, the one that holds data/.")
    shards = tuple(sorted((root / "data").rglob("*.parquet")))
    if not shards:
        raise InputError(f"{root} holds no data/**/*.parquet. Give the folder of a MEDS data set.")
    return Dataset(root, shards)


WIDE_SUBJECT = ("subject_id does not fit into 64 bits with a sign.", "Number the subjects anew.")


def _is_string(dtype: pl.DataType) -> bool:
    return dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)


def _column_problems(schema: pl.Schema) -> Iterator[tuple[str, str]]:
    checks = {
        "subject_id": (lambda t: t.is_integer(), "an integer", True),
        "time": (lambda t: isinstance(t, pl.Datetime) and t.time_zone is None, "a date-time without time zone", True),
        "code": (_is_string, "a string", True),
        "numeric_value": (lambda t: t.is_numeric() or t == pl.Null, "a number", False),
        "text_value": (lambda t: _is_string(t) or t == pl.Null, "a string", False),
    }
    for column, (accepts, expected, required) in checks.items():
        if column not in schema:
            if required:
                old = next((name for name, new in OLD_NAMES.items() if new == column and name in schema), None)
                remedy = f"Rename {old!r} to {column!r}." if old else "Write it as MEDS prescribes."
                yield f"the column {column!r} is missing.", remedy
        elif not accepts(schema[column]):
            yield f"the column {column!r} is {schema[column]}, expected {expected}.", "Cast it when writing the file."


def _violation(file: str, broken: pl.Series, problem: str, remedy: str, first_row: int = 0) -> Violation:
    rows = broken.arg_true()
    return Violation(file, tuple(int(r) + first_row + 1 for r in rows.head(ROWS_NAMED)), len(rows), problem, remedy)


def wrong_columns(schema: pl.Schema, file: str) -> list[Violation]:
    """Every column that is missing or of a wrong type."""
    return [Violation(file, (), 0, problem, remedy) for problem, remedy in _column_problems(schema)]


def refuse(violations: list[Violation], dataset: Dataset) -> None:
    """Raises InputError with the first of the violations, if there is one."""
    if violations:
        raise InputError(f"{violations[0]} `ehrctx check {dataset.root}` lists all violations.")


def _before_birth(birth: str) -> pl.Expr:
    born = pl.col("time").filter(pl.col("code").cast(pl.String) == birth).min().over("subject_id")
    return pl.col("time") < born - BEFORE_BIRTH


def violations_of(events: pl.DataFrame, file: str, birth: str = BIRTH, first_row: int = 0) -> list[Violation]:
    """Every rule that the raw rows of one shard break; rows count from 1.

    `birth` is the code of births; `first_row` is how many rows of the file lie before these.
    """
    found = wrong_columns(events.schema, file)
    if found or events.is_empty():
        return found
    subject, time, code = pl.col("subject_id"), pl.col("time"), pl.col("code").cast(pl.String)
    same = subject == subject.shift(1)
    # a subject that begins again: looked for among the first rows of runs alone, which are few
    runs = events.select(subject).with_row_index("_row").filter((subject != subject.shift(1)).fill_null(True))
    again = runs.filter(~subject.is_first_distinct() & subject.is_not_null() & (pl.col("_row") > 0))["_row"]
    checked = events.select(
        no_subject=subject.is_null(),
        wide_subject=subject.is_not_null() & subject.cast(pl.Int64, strict=False).is_null(),
        no_code=pl.col("code").is_null() | (code == ""),
        long_code=code.str.len_bytes() > LONGEST_CODE,
        back_in_time=same & (time < time.shift(1)),
        late_static=same & time.is_null() & time.shift(1).is_not_null(),
        before_birth=_before_birth(birth),
    ).with_columns(scattered=pl.int_range(pl.len(), dtype=pl.UInt32).is_in(again.implode()))
    rules = {
        "no_subject": ("subject_id is empty.", "Drop the row or give it its subject."),
        "wide_subject": WIDE_SUBJECT,
        "no_code": ("code is empty.", "Drop the row or give it a code."),
        "long_code": (
            f"code is longer than {LONGEST_CODE} bytes.",
            "Give codes, not notes or whole rows; a text belongs in text_value.",
        ),
        "scattered": ("a subject's rows are not together.", "Sort the file by subject_id, then time."),
        "back_in_time": ("time goes back within a subject (unsorted).", "Sort the file by subject_id, then time."),
        "late_static": ("a static row (no time) follows timed ones.", "Put static rows first in each subject."),
        "before_birth": (
            f"time is more than {BEFORE_BIRTH.days} days before the subject's birth.",
            "Mend the time or the birth, or drop the row.",
        ),
    }
    return [
        _violation(file, checked[name].fill_null(False), problem, remedy, first_row)
        for name, (problem, remedy) in rules.items()
        if checked[name].any()
    ]


def unreadable(name: str, error: Exception) -> InputError:
    """What is said of the parquet file `name` that a library cannot read."""
    reason = str(error).splitlines()[0].rstrip(".")
    return InputError(f"{name} is not a readable parquet file ({reason}). Write it again.")


def read_parquet(file: Path, name: str) -> pl.DataFrame:
    """A parquet file; `name` is what errors call it."""
    try:
        return pl.read_parquet(file, glob=False)
    except (pl.exceptions.ComputeError, OSError) as error:
        raise unreadable(name, error) from None


def read_raw(dataset: Dataset, shard: Path) -> pl.DataFrame:
    """One shard as it lies on disk."""
    return read_parquet(shard, dataset.name_of(shard))


def read_valid(dataset: Dataset, shard: Path) -> pl.DataFrame:
    """One shard's rows as they are. Raises InputError, with file and row, at the first rule of MEDS that they break."""
    raw = read_raw(dataset, shard)
    refuse(violations_of(raw, dataset.name_of(shard)), dataset)
    return raw


def read_codes(dataset: Dataset) -> pl.DataFrame:
    """`metadata/codes.parquet` as (code, description, parent_codes list of strings); empty where there is none."""
    file = dataset.root / CODES_FILE
    empty: dict[str, Any] = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
    if not file.is_file():
        return pl.DataFrame(schema=empty)
    codes = read_parquet(file, CODES_FILE.as_posix())
    if "code" not in codes.columns:
        raise InputError(f"{CODES_FILE}: the column 'code' is missing. Write it as MEDS prescribes.")
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in empty.items() if name not in codes.columns]
    return codes.with_columns(missing).select(
        pl.col("code").cast(pl.String), pl.col("description").cast(pl.String), "parent_codes"
    )


def check_splits(splits: pl.DataFrame, file: str) -> list[Violation]:
    """Every rule that a table of splits breaks."""
    for column, accepts, expected in (
        ("subject_id", lambda t: t.is_integer(), "an integer"),
        ("split", _is_string, "a string"),
    ):
        if column not in splits.columns:
            return [Violation(file, (), 0, f"the column {column!r} is missing.", "Write it as MEDS prescribes.")]
        if not accepts(splits.schema[column]):
            return [
                Violation(
                    file, (), 0, f"the column {column!r} is {splits.schema[column]}, expected {expected}.", "Cast it."
                )
            ]
    found = []
    unknown = ~splits["split"].cast(pl.String).is_in(SPLITS).fill_null(False)
    if unknown.any():
        found.append(_violation(file, unknown, "split is not train, tuning or held_out.", "Use these names."))
    wide = splits["subject_id"].is_not_null() & splits["subject_id"].cast(pl.Int64, strict=False).is_null()
    if wide.any():
        found.append(_violation(file, wide, *WIDE_SUBJECT))
    twice = ~splits["subject_id"].is_first_distinct()
    if twice.any():
        found.append(_violation(file, twice, "a subject is listed twice.", "List each subject once."))
    return found


def subjects_in_two_shards(subjects: Sequence[tuple[str, np.ndarray]]) -> list[Violation]:
    """MEDS keeps each subject in one shard; `subjects` are (name, distinct subject_ids) of each."""
    file = np.repeat(np.arange(len(subjects)), [len(ids) for _, ids in subjects])
    order = np.argsort(
        everybody := np.concatenate([np.zeros(0, dtype=np.int64), *(ids for _, ids in subjects)]), kind="stable"
    )
    again = order[1:][everybody[order[1:]] == everybody[order[:-1]]]
    return [
        Violation(
            subjects[number][0],
            (),
            0,
            f"{n:,} of its subjects are in an earlier file too, or apart in this one.",
            "Keep each subject in one file, its rows together.",
        )
        for number, n in enumerate(np.bincount(file[again], minlength=len(subjects)).tolist())
        if n
    ]
