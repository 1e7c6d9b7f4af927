"""A tidy CDM, changed in one way as users of other tools report: the right events, or one sentence. Each row counts."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from mutation import Mutation, assert_right_or_refused

sys.path.insert(0, str(Path(__file__).parents[1] / "events"))
from omop_by_hand import small_cdm, write_cdm

from ehrctx.events.omop.convert import import_omop
from ehrctx.study import HashSplits, OmopOptions

Change = Callable[[Path, np.random.Generator], object]
Edit = Callable[[bytes], bytes]
TABLES = ("person", "visit_occurrence", "measurement", "condition_occurrence", "death", "concept", "observation")
EVENTS = tuple(name for name in TABLES if name not in ("person", "concept"))
UTF_8 = "Write the file as UTF-8"


def read(folder: Path, out: Path) -> list[tuple]:
    """All events in order, after a count of the rows: each has events, or was left out for one reason."""
    facts = import_omop(folder, out, OmopOptions(implausible_time="drop"), HashSplits(hash=(0.5, 0.2, 0.3)))
    for counts in facts["tables"].values():
        assert counts["rows"] == counts["rows_imported"] + sum(counts.get("left_out", {}).values())
    events = pl.concat([pl.read_parquet(file) for file in (out / "data").iterdir()])
    assert facts["events"] == events.height == sum(counts["events"] for counts in facts["tables"].values())
    return events.sort("subject_id", maintain_order=True).rows()


def any_file(draw: np.random.Generator, names: tuple[str, ...] = TABLES) -> str:
    return names[draw.integers(len(names))]


def file_as(
    edit: Callable[[bytes], bytes], rename: Callable[[str], str] = str, names: tuple[str, ...] = TABLES
) -> Change:
    """Changes the bytes and the name of the file of a table that is drawn."""

    def change(folder: Path, draw: np.random.Generator) -> None:
        file = folder / f"{any_file(draw, names)}.csv"
        content = edit(file.read_bytes())
        file.unlink()
        (folder / rename(file.name)).write_bytes(content)

    return change


def all_files_as(edit: Edit, rename: Callable[[str], str] = str) -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        for file in list(folder.iterdir()):
            content = edit(file.read_bytes())
            file.unlink()
            (folder / rename(file.name)).write_bytes(content)

    return change


def separated(separator: str) -> Edit:
    def edit(text: bytes) -> bytes:
        out = io.StringIO(newline="")
        csv.writer(out, delimiter=separator).writerows(csv.reader(io.StringIO(text.decode(), newline="")))
        return out.getvalue().encode()

    return edit


def cells(name: str, column: str, value: str, row: int | None = None) -> Change:
    """Writes `value` into a cell of a table, of a row that is drawn among those that a fourth person does not have."""

    def change(folder: Path, draw: np.random.Generator) -> None:
        file = folder / f"{name}.csv"
        rows = list(csv.reader(file.open(encoding="utf-8", newline="")))
        at = 1 + (draw.integers(len(rows) - 1) if row is None else row)
        rows[at][rows[0].index(column)] = value
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)

    return change


def split_into_parts(name: Callable[[str, int], str]) -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        table = any_file(draw, ("measurement", "visit_occurrence", "condition_occurrence"))
        file = folder / f"{table}.csv"
        header, *rows = list(csv.reader(file.open(encoding="utf-8", newline="")))
        file.unlink()
        cut = draw.integers(1, len(rows))
        for i, part in enumerate((rows[:cut], rows[cut:])):
            order = draw.permutation(len(header)) if i else range(len(header))
            to = folder / name(table, i)
            to.parent.mkdir(exist_ok=True)
            with to.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows([[row[at] for at in order] for row in (header, *part)])

    return change


def as_parquet(edit: Callable[[pa.Table], pa.Table] = lambda table: table, **options: object) -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        file = folder / "measurement.csv"
        table = edit(pa_csv.read_csv(file))
        file.unlink()
        pq.write_table(table, folder / "measurement.parquet", **options)

    return change


def beside(name: str, content: bytes = b"\x00\xff") -> Change:
    def change(folder: Path, draw: np.random.Generator) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def as_link(folder: Path, draw: np.random.Generator) -> None:
    file = folder / f"{any_file(draw)}.csv"
    elsewhere = folder.with_name("elsewhere")
    elsewhere.mkdir()
    file.rename(elsewhere / file.name)
    file.symlink_to(elsewhere / file.name)


def dangling_link(folder: Path, draw: np.random.Generator) -> None:
    (folder / "note.csv").symlink_to(folder / "gone.csv")


def looping_link(folder: Path, draw: np.random.Generator) -> None:
    os.symlink(folder, folder / "again")


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.append_column(name, column)


def cast(table: pa.Table, name: str, dtype: pa.DataType) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, name, table.column(name).cast(dtype))


def without(*indices: int) -> Callable[[list], list]:
    return lambda rows: [row for i, row in enumerate(rows) if i not in indices]


def renamed(code: str, to: str) -> Callable[[list], list]:
    """The second row of this code has the code `to`."""

    def expected(rows: list) -> list:
        at = [i for i, row in enumerate(rows) if row[2] == code]
        assert len(at) == 1
        return [(*row[:2], to, *row[3:]) if i == at[0] else row for i, row in enumerate(rows)]

    return expected


def valued(number: float | None, text: str | None, unit: str | None) -> Callable[[list], list]:
    """The first measurement has this number, text and unit."""

    def expected(rows: list) -> list:
        at = next(i for i, row in enumerate(rows) if row[7] == "measurement")
        return [(*row[:3], number, text, unit, *row[6:]) if i == at else row for i, row in enumerate(rows)]

    return expected


def open_stay(rows: list) -> list:
    """The first stay has no end."""
    kept = [row for row in rows if not (row[2] == "Visit/IP//END" and row[6] == 10)]
    return [(*row[:9], None) if row[2] == "Visit/IP" and row[6] == 10 else row for row in kept]


def born(year: int) -> Callable[[list], list]:
    def expected(rows: list) -> list:
        at = next(i for i, row in enumerate(rows) if row[2] == "MEDS_BIRTH")
        return [(row[0], datetime(year, 3, 4), *row[2:]) if i == at else row for i, row in enumerate(rows)]

    return expected


def shortened(code: str) -> str:
    """486 bytes and 8 digits of the hash of the whole: at most 500, with room for `//END`."""
    return f"{code[:486]}~{hashlib.sha256(code.encode()).hexdigest()[:8]}"


WORDS = "word " * 399 + "word"
MUTATIONS = [
    Mutation("capital letters", all_files_as(bytes, str.upper)),
    Mutation("gzip in capital letters", all_files_as(gzip.compress, lambda name: f"{name.upper()}.GZ")),
    Mutation("gzip without the suffix", file_as(gzip.compress)),
    Mutation("gzip that is cut off", file_as(lambda text: gzip.compress(text)[:-9]), "damaged or cut off"),
    Mutation("tabs", all_files_as(separated("\t"))),
    Mutation("semicolons", all_files_as(separated(";"))),
    Mutation("bars in files of text", all_files_as(separated("|"), lambda name: name.replace(".csv", ".txt"))),
    Mutation("tabs in a .tsv", file_as(separated("\t"), lambda name: name.replace(".csv", ".tsv"))),
    Mutation("UTF-16", file_as(lambda text: text.decode().encode("utf-16")), f"looks like UTF-16. {UTF_8}"),
    Mutation("UTF-32", file_as(lambda text: text.decode().encode("utf-32-be")), f"looks like UTF-32. {UTF_8}"),
    Mutation("latin-1", file_as(lambda text: b"\xfc" + text), f"its first line is not UTF-8 text. {UTF_8}"),
    Mutation("a byte order mark", file_as(b"\xef\xbb\xbf".__add__)),
    Mutation("LF", all_files_as(lambda text: text.replace(b"\r\n", b"\n"))),
    Mutation("blank lines", file_as(lambda text: text + b"\r\n\r\n")),
    Mutation("an empty file", file_as(lambda text: b""), r"\.csv is empty"),
    Mutation("a row cut off", file_as(lambda text: text.rstrip().rpartition(b",")[0], names=EVENTS), "row .* fields"),
    Mutation("a ZIP archive", file_as(lambda text: b"PK\x03\x04" + text), "not text but a ZIP archive"),
    Mutation("parts by number", split_into_parts("{}_00000000000{}.csv".format)),
    Mutation("parts of a count", split_into_parts(lambda name, i: f"{name.upper()}-0000{i}-of-00002.csv")),
    Mutation("parts in a folder", split_into_parts("{}/part-{}.csv".format)),
    Mutation("a part missing", split_into_parts("{}-{}-of-3.csv".format), "3 parts, of which 2 are there"),
    Mutation("one of two forms", beside("measurement_0.csv", b"person_id\n"), "holds the table measurement twice"),
    Mutation("junk beside the tables", beside("._person.csv")),
    Mutation("a table that is not read", beside("NOTE.csv.gz")),
    Mutation("a spreadsheet beside the tables", beside("codes.xlsx")),
    Mutation("a link to a file", as_link),
    Mutation("a link to nothing", dangling_link, "note.csv is a link to a file that is not there"),
    Mutation("a link back up", looping_link, "again is a link to a folder above it"),
    Mutation("parquet", as_parquet()),
    Mutation("parquet with INT96", as_parquet(use_deprecated_int96_timestamps=True)),
    Mutation("ids of decimal256", as_parquet(lambda table: cast(table, "person_id", pa.decimal256(70, 0)))),
    Mutation(
        "a column of lists beside", as_parquet(lambda table: with_column(table, "tags", pa.array([[1]] * len(table))))
    ),
    Mutation(
        "ids of texts that are none", cells("measurement", "person_id", "x1", 3),
        r"measurement\.csv, row 4: person_id is not a whole number",
    ),
    Mutation("NA for a number", cells("measurement", "value_as_number", "NA", 0), expected=valued(None, "5.9", None)),
    Mutation("a comparator", cells("measurement", "value_as_number", "> 100", 0), expected=valued(100, ">", "mmol/L")),
    Mutation("a comma", cells("measurement", "value_as_number", "5,9", 0), expected=valued(None, "5,9", None)),
    Mutation("an offset", cells("measurement", "measurement_datetime", "2020-01-05T08:00:00.0000000 +00:00", 0)),
    Mutation("a day first", cells("death", "death_date", "1/2/2022", 1), "row 2: death_date is not a date"),
    Mutation(
        "a start that is a placeholder",
        cells("device_exposure", "device_exposure_start_date", "9999-12-31", 0),
        expected=lambda rows: [row for row in rows if row[7] != "device_exposure"],
    ),
    Mutation("an open end", cells("visit_occurrence", "visit_end_datetime", "9999-12-31", 0), expected=open_stay),
    Mutation("a birth long ago", cells("person", "birth_datetime", "1600-03-04", 0), expected=born(1600)),
    Mutation(
        "a source value of 400 words", cells("condition_occurrence", "condition_source_value", WORDS, 1),
        expected=renamed("UNMAPPED/condition_occurrence/X99", shortened(f"UNMAPPED/condition_occurrence/{WORDS}")),
    ),
    Mutation("a person twice", cells("person", "person_id", "1", 1), r"row 2: this person_id is there twice"),
    Mutation("a person who is not there", cells("device_exposure", "person_id", "77", 0),
        expected=lambda rows: [row for row in rows if row[7] != "device_exposure"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def tidy_result(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tidy")
    return read(write_cdm(folder / "cdm", small_cdm()), folder / "meds")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_changed_cdm(mutation, tmp_path, tidy_result):
    folder = write_cdm(tmp_path / "cdm", small_cdm())
    assert_right_or_refused(mutation, folder, tmp_path / "meds", read, tidy_result)
