"""The rules of MEDS that a data set may break: one set of them, for `check` and for every stage that reads events.

A violation names file and row, never a subject or a value. What is unusual, but can be read, is no violation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl
import pyarrow as pa

from ehrctx.errors import InputError
from ehrctx.events.parquet import is_flat, is_text
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.violations import CAST, TWICE, Rule, Violation, of_file, of_rows

if TYPE_CHECKING:
    from ehrctx.events.meds import Dataset

OLD_NAMES = {"patient_id": "subject_id", "timestamp": "time"}  # MEDS before 0.3
LONGEST_CODE = 500  # bytes; longer ones are notes or joined columns, which no vocabulary can hold
# Records of a pregnancy's last weeks; earlier ones are another person's, or a wrong date.
BEFORE_BIRTH = timedelta(days=30)
LONGEST_LIFE = timedelta(seconds=2**32 - 1)  # 136 years: the seconds of a timeline are 32 bits
# Outside these years a time is a placeholder (9999-12-31 is an open end), not a date: de-identified ones reach 2200.
FIRST_DAY, LAST_DAY = datetime(1700, 1, 1), datetime(2500, 1, 1)
FIRST_BIRTH = datetime(1, 1, 1)  # births are moved farther back than events
SPLITS = ("train", "tuning", "held_out")
MEDS = DatasetProfile(name="MEDS")  # what MEDS itself prescribes, where no profile is named
BIRTH = MEDS.birth
AS_MEDS = "Write it as MEDS prescribes."


WIDE_SUBJECT = Rule("subject_id does not fit into 64 bits with a sign.", "Number the subjects anew.")
ROW_RULES = {
    "no_subject": Rule("subject_id is empty.", "Drop the row or give it its subject."),
    "wide_subject": WIDE_SUBJECT,
    "no_code": Rule("code is empty.", "Drop the row or give it a code."),
    "long_code": Rule(
        f"code is longer than {LONGEST_CODE} bytes.",
        "Give codes, not notes or whole rows; a text belongs in text_value.",
    ),
    "scattered": Rule("a subject's rows are not together.", "Sort the file by subject_id, then time."),
    "back_in_time": Rule("time goes back within a subject (unsorted).", "Sort the file by subject_id, then time."),
    "late_static": Rule("a static row (no time) follows timed ones.", "Put static rows first in each subject."),
    "placeholder": Rule(
        f"time lies before {FIRST_DAY.year} or after {LAST_DAY.year - 1}: a placeholder, not a date.",
        "Drop the row, or import again with --implausible-time drop, which counts such rows.",
    ),
    "before_birth": Rule(
        f"time is more than {BEFORE_BIRTH.days} days before the subject's birth.",
        "Fix the time or the birth, or drop the row.",
    ),
    "long_life": Rule(
        "time is more than 136 years away from other events of the subject.", "Fix the time, or drop the row."
    ),
}


def _broken(file: str, is_broken: pl.Series, rule: Rule, first_row: int = 0) -> Violation:
    return of_rows(file, is_broken.arg_true().to_list(), rule, first_row)


NO_EVENTS = of_file("data/", Rule("no file in it has rows.", "Give a data set with events."))


def refuse(violations: Sequence[Violation], dataset: Dataset) -> None:
    """Raises InputError with the first of the violations, if there is one."""
    if violations:
        raise InputError(f"{violations[0]} `ehrctx check {dataset.root}` lists all violations.")


def _is_number(dtype: pa.DataType) -> bool:
    return pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype)


def _is_time(dtype: pa.DataType) -> bool:
    return pa.types.is_timestamp(dtype) and dtype.tz is None


# column -> whether a type is accepted, what is expected, whether the column must be there
COLUMNS: dict[str, tuple[Callable[[pa.DataType], bool], str, bool]] = {
    "subject_id": (pa.types.is_integer, "an integer", True),
    "time": (lambda t: _is_time(t) or pa.types.is_null(t), "a date-time without time zone", True),
    "code": (is_text, "a string", True),
    "numeric_value": (lambda t: _is_number(t) or pa.types.is_null(t), "a number", False),
    "text_value": (lambda t: is_text(t) or pa.types.is_null(t), "a string", False),
}


def _is_name(dtype: pa.DataType) -> bool:
    """Whether a column of this type can name units or visits; pandas and databases make decimals of numbers."""
    return is_text(dtype) or pa.types.is_null(dtype) or _is_number(dtype)


def _column_problems(schema: pa.Schema, profile: DatasetProfile, is_empty: bool) -> Iterator[Rule]:
    for column, (accepts, expected, required) in COLUMNS.items():
        if column not in schema.names:
            if required:
                old = next((name for name, new in OLD_NAMES.items() if new == column and name in schema.names), None)
                remedy = f"Rename {old!r} to {column!r}." if old else AS_MEDS
                yield Rule(f"the column {column!r} is missing.", remedy)
        elif schema.names.count(column) > 1:
            yield TWICE.about(column)
        elif not (accepts(dtype := schema.field(column).type) or (is_empty and pa.types.is_null(dtype))):
            yield Rule(f"the column {column!r} is {dtype}, expected {expected}.", CAST)
    for key in ("visit_column", "unit_column"):
        column = getattr(profile, key)
        if not column:
            continue
        if column not in schema.names:
            yield Rule(
                f"no column {column!r}, which the profile {profile.name!r} names as {key}.",
                "Fix the profile, or write the column in every file.",
            )
        elif schema.names.count(column) > 1:
            yield TWICE.about(column)
        elif not (_is_name(dtype := schema.field(column).type) or (key == "visit_column" and is_flat(dtype))):
            yield Rule(f"the column {column!r} ({key}) is {dtype}, expected a string or an integer.", CAST)


def wrong_columns(
    schema: pa.Schema, file: str, profile: DatasetProfile = MEDS, is_empty: bool = False
) -> list[Violation]:
    """Every column of MEDS or of the profile that is missing, there twice, or of a wrong type.

    A file without rows (`is_empty`) may have columns without a type.
    """
    return [of_file(file, rule) for rule in _column_problems(schema, profile, is_empty)]


def longest_life(profile: DatasetProfile) -> timedelta:
    """How far from a subject's origin its events in a file may lie; some will move to the end of their day."""
    return LONGEST_LIFE - timedelta(days=1) if profile.date_only else LONGEST_LIFE


def _times(birth: str, longest: timedelta) -> dict[str, pl.Expr]:
    """The rules on times that need all events of a subject."""
    time, subject = pl.col("time"), pl.col("subject_id")
    is_birth = (pl.col("code").cast(pl.String) == birth).fill_null(False)
    earliest = pl.when(is_birth).then(FIRST_BIRTH).otherwise(FIRST_DAY)
    is_placeholder = (time >= LAST_DAY) | (time < earliest)
    is_date = time.is_not_null() & ~is_placeholder
    last = time.filter(is_date).max().over(subject)
    is_event = is_date & ~(is_birth & (last - time.dt.truncate("1s") > longest))  # such a birth is ignored
    born = time.filter(is_event & is_birth).min().over(subject)
    first = time.filter(is_event).min().over(subject)
    middle = time.filter(is_event).median().over(subject)
    # the end that is farther from most events is the wrong one
    is_first_wrong = middle - first > last - middle
    origin = first.dt.truncate("1s")
    is_apart = pl.when(is_first_wrong).then(last - time.dt.truncate("1s") > longest).otherwise(time - origin > longest)
    return {
        "placeholder": is_placeholder,
        "before_birth": is_event & (time < born - BEFORE_BIRTH),
        "long_life": is_event & (last - origin > longest) & is_apart,
    }


def violations_of(
    events: pl.DataFrame, file: str, birth: str = BIRTH, first_row: int = 0, longest: timedelta = LONGEST_LIFE
) -> list[Violation]:
    """Every rule that rows break, as they lie in a file: subject_id an integer, time datetime[us], code a string.

    `birth` is the code of births; `first_row` is how many rows of the file lie before these. `longest`: see
    `longest_life`.
    """
    if events.is_empty():
        return []
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
        **_times(birth, longest),
    ).with_columns(scattered=pl.int_range(pl.len(), dtype=pl.UInt32).is_in(again.implode()))
    return [
        _broken(file, checked[name].fill_null(False), rule, first_row)
        for name, rule in ROW_RULES.items()
        if checked[name].any()
    ]


def subjects_in_two_shards(subjects: Sequence[tuple[str, np.ndarray]]) -> list[Violation]:
    """MEDS keeps each subject in one shard; `subjects` are (name, distinct subject_ids) of each."""
    file = np.repeat(np.arange(len(subjects)), [len(ids) for _, ids in subjects])
    order = np.argsort(
        everybody := np.concatenate([np.zeros(0, dtype=np.int64), *(ids for _, ids in subjects)]), kind="stable"
    )
    again = order[1:][everybody[order[1:]] == everybody[order[:-1]]]
    return [
        of_file(
            subjects[number][0],
            Rule(
                f"{n:,} of its subjects are in an earlier file too, or apart in this one.",
                "Keep each subject in one file, its rows together.",
            ),
        )
        for number, n in enumerate(np.bincount(file[again], minlength=len(subjects)).tolist())
        if n
    ]


def _is_text_or_null(dtype: pl.DataType) -> bool:
    return dtype in (pl.String, pl.Null) or isinstance(dtype, pl.Categorical | pl.Enum)


def wrong_codes(codes: pl.DataFrame, file: str) -> list[Violation]:
    """Every column of metadata/codes.parquet that is missing or of a wrong type; columns without rows have none."""

    def is_list(dtype: pl.DataType) -> bool:
        return isinstance(dtype, pl.List | pl.Array) and _is_text_or_null(cast(pl.DataType, dtype.inner))

    checks: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
        "code": (_is_text_or_null, "a string"),
        "description": (_is_text_or_null, "a string"),
        "parent_codes": (lambda t: t == pl.Null or is_list(t), "a list of strings"),
    }
    if "code" not in codes.columns:
        return [of_file(file, Rule("the column 'code' is missing.", AS_MEDS))]
    return [
        of_file(file, Rule(f"the column {name!r} is {codes.schema[name]}, expected {expected}.", CAST))
        for name, (accepts, expected) in checks.items()
        if name in codes.columns and not accepts(codes.schema[name])
    ]


def check_splits(splits: pl.DataFrame, file: str) -> list[Violation]:
    """Every rule that a table of splits breaks."""
    for column, accepts, expected in (
        ("subject_id", lambda t: t.is_integer(), "an integer"),
        ("split", _is_text_or_null, "a string"),
    ):
        if column not in splits.columns:
            return [of_file(file, Rule(f"the column {column!r} is missing.", AS_MEDS))]
        dtype = splits.schema[column]
        if not (accepts(dtype) or (dtype == pl.Null and splits.is_empty())):
            return [of_file(file, Rule(f"the column {column!r} is {dtype}, expected {expected}.", CAST))]
    subject = splits["subject_id"]
    broken = (
        (subject.is_null(), Rule("subject_id is empty.", "Drop the row or give it its subject.")),
        (
            ~splits["split"].cast(pl.String).is_in(SPLITS).fill_null(False),
            Rule("split is not train, tuning or held_out.", "Use these names."),
        ),
        (subject.is_not_null() & subject.cast(pl.Int64, strict=False).is_null(), WIDE_SUBJECT),
        (~subject.is_first_distinct(), Rule("a subject is listed twice.", "List each subject once.")),
    )
    return [_broken(file, is_broken, rule) for is_broken, rule in broken if is_broken.any()]
