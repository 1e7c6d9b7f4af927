"""Labels as CSV: EHRSHOT's `labeled_patients.csv`, or MEDS's columns. Every text is checked before it becomes a value.

EHRSHOT's columns are patient_id, prediction_time, value and label_type: `boolean` for True and False, `categorical` for
the laboratory tasks' grades (https://github.com/som-shahlab/ehrshot-benchmark).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.csv_files import read_text
from ehrctx.events.units import is_missing_unit

BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
WHOLE_NUMBER = r"^[+-]?\d+(\.0*)?$"
ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?$"
SHAPES = {
    r"(?:1[3-9]|[23]\d)/\d{1,2}/\d{4}": "DD/MM/YYYY",
    r"\d{1,2}/\d{1,2}/\d{4}": "MM/DD/YYYY",
    r"\d{1,2}\.\d{1,2}\.\d{4}": "DD.MM.YYYY",
    r"\d{4}/\d{1,2}/\d{1,2}": "YYYY/MM/DD",
    r"\d{4}-\d{2}-\d{2}$": "YYYY-MM-DD",
    r"\d{4}-\d{2}-\d{2}[T ][\d:.]+ ?(?:Z|[+-]\d\d)": "a date-time with a time zone",
    r"\d+(?:\.\d+)?$": "a number",
}


def refuse_row(file: Path, broken: pl.Series, problem: str) -> None:
    """Raises InputError that names the first row of `file` where `broken` is true; counted from 1, below a header."""
    if broken.any():
        raise InputError(f"{file}, row {int(broken.arg_true()[0]) + 1:,}: {problem}")


def _read_text(file: Path) -> pl.DataFrame:
    """All columns as text without spaces around it, null where it is missing, as in typed columns of other readers."""
    text = read_text(file)
    first = text.split(b"\n", 1)[0].decode()
    names = [name.strip() for name in next(csv.reader([first]), [])]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise InputError(f"{file}: the columns are separated by semicolons, tabs or bars. Write it with commas.")
    if len(set(names)) < len(names):
        raise InputError(f"{file}: the column {max(names, key=names.count)!r} is there twice. Remove one of them.")
    try:
        rows = pl.read_csv(text, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError):
        raise InputError(
            f"{file} is not a readable CSV file. Write it as UTF-8, with one header and as many fields in every row."
        ) from None
    rows = rows.rename(dict(zip(rows.columns, names, strict=True))).with_columns(pl.all().str.strip_chars())
    filled = rows.select(pl.any_horizontal(pl.all().fill_null("") != "")).to_series().arg_true()
    rows = rows.head(int(filled[-1]) + 1 if len(filled) else 0)  # without the blank lines at the end
    return rows.with_columns(
        pl.when(~is_missing_unit(pl.col(name))).then(pl.col(name)).alias(name) for name in rows.columns
    )


def _whole_numbers(text: pl.Series, file: Path, problem: str) -> pl.Series:
    refuse_row(file, ~text.str.contains(WHOLE_NUMBER), problem)
    number = text.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    refuse_row(file, text.is_not_null() & number.is_null(), f"{text.name} does not fit into 64 bits. Correct it.")
    return number


def _booleans(text: pl.Series, file: Path) -> pl.Series:
    value = text.str.to_lowercase().replace_strict(BOOLEANS, default=None, return_dtype=pl.Boolean)
    problem = f"{text.name} is neither True nor False. Write one of them, or leave the row out."
    refuse_row(file, text.is_not_null() & value.is_null(), problem)
    return value


def _times(text: pl.Series, file: Path) -> pl.Series:
    iso = text.str.contains(ISO)
    if (~iso).any():
        first = str(text.filter(~iso)[0])
        shape = next((shape for pattern, shape in SHAPES.items() if re.match(pattern, first)), None)
        looks = f" (it looks like {shape})" if shape else ""
        refuse_row(file, ~iso, f"{text.name} is not an ISO date-time{looks}. Write it as YYYY-MM-DDTHH:MM:SS.")
    whole = text.str.replace(" ", "T").str.replace(r"^([^.:]+:\d\d)$", "$1:00")
    time = whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    problem = f"{text.name} is a day or a time that no calendar has. Correct it."
    refuse_row(file, text.is_not_null() & time.is_null(), problem)
    return time


def _typed_value(rows: pl.DataFrame, file: Path) -> pl.Series:
    """EHRSHOT's `value`: boolean, or int64 grades. Without a label_type, True and False in all rows are booleans."""
    value = rows["value"]
    if "label_type" not in rows.columns:
        words = value.str.to_lowercase().is_in(["true", "false"])
        if words.fill_null(True).all():
            return _booleans(value, file)
        problem = (
            "value is neither True or False, as in all rows, nor a whole number. Correct it, or leave the row out."
        )
        return _whole_numbers(value, file, problem)
    label_type = rows["label_type"].str.to_lowercase()
    known = label_type.is_in(["boolean", "integer", "categorical"]).fill_null(False)
    problem = "label_type is not boolean, integer or categorical. Only yes-or-no answers and grades can be used."
    refuse_row(file, ~known, problem)
    if len(rows) and label_type[0] == "boolean":
        refuse_row(file, label_type != "boolean", "label_type is another than in row 1. Write one task per file.")
        return _booleans(value, file)
    refuse_row(file, label_type == "boolean", "label_type is another than in row 1. Write one task per file.")
    problem = (
        "value is no grade from 0 (normal) to 3 (severe). Several findings in one number, as in chexpert, are several "
        "tasks: write a file of True and False for each."
    )
    grade = _whole_numbers(value, file, problem)
    refuse_row(file, ~grade.is_between(0, 3), problem)
    return grade


def read_csv(file: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """The columns of a label file, typed where they are known, by their names in MEDS; and what the file calls these.

    Raises InputError, with file and row, at the first text that is not what its column holds.
    """
    rows = _read_text(file)
    columns: dict[str, pl.Series] = {}
    names: dict[str, str] = {}
    subject = "patient_id" if "subject_id" not in rows.columns and "patient_id" in rows.columns else "subject_id"
    if subject in rows.columns:
        names["subject_id"] = subject
        problem = f"{subject} is not a whole number. Use the ids of the data set."
        columns["subject_id"] = _whole_numbers(rows[subject], file, problem)
    if "prediction_time" in rows.columns:
        columns["prediction_time"] = _times(rows["prediction_time"], file)
    if "value" in rows.columns:
        value = _typed_value(rows, file)
        column = "boolean_value" if value.dtype == pl.Boolean else "integer_value"
        columns[column], names[column] = value, "value"
        return pl.DataFrame(columns), names
    if "boolean_value" in rows.columns:
        columns["boolean_value"] = _booleans(rows["boolean_value"], file)
    if "integer_value" in rows.columns:
        problem = "integer_value is not a whole number. Round it, leave it empty, or leave the row out."
        columns["integer_value"] = _whole_numbers(rows["integer_value"], file, problem)
    return pl.DataFrame(columns), names
