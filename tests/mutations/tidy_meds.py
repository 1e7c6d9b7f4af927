"""A tidy MEDS set, and changes of its files: what `mutation.Mutation` takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from mutation import Change

PROFILE = {
    "name": "tidy", "unit_column": "unit", "visit_column": "visit", "admission": ["ADMISSION//*"],
    "discharge": ["DISCHARGE"], "follow_up_end": "record_end", "groups": {"sex": {"female": ["SEX//F"]}},
}  # fmt: skip
SPLIT_NAMES = ("train", "train", "tuning", "held_out")
SHARDS = ("data/rest/0.parquet", "data/train/0.parquet")  # as they are sorted
FIRST, SECOND = SHARDS
CODES = "metadata/codes.parquet"
SPLITS = "metadata/subject_splits.parquet"
SECRET = 987_650_000  # subjects count from here


def tidy_rows(rng: np.random.Generator, subject: int) -> list[tuple[Any, ...]]:
    born = datetime(1950, 1, 1) + timedelta(days=int(rng.integers(0, 9_000)))
    rows: list[tuple[Any, ...]] = [(subject, None, "SEX//F" if subject % 2 else "SEX//M", None, None, None, None)]
    rows.append((subject, born, "MEDS_BIRTH", None, None, None, None))
    for visit in range(int(rng.integers(1, 4))):
        day = born + timedelta(days=12_000 + 200 * visit, hours=int(rng.integers(0, 24)))
        number = subject % 100 * 10 + visit
        rows.append((subject, day, "ADMISSION//ER", None, None, None, number))
        for hour in range(int(rng.integers(2, 6))):
            unit = ("mmol/L", None)[int(rng.integers(0, 2))]
            value = float(rng.integers(1, 200))
            rows.append((subject, day + timedelta(hours=hour), "LAB//NA", value, None, unit, number))
        rows.append((subject, day + timedelta(hours=9), "URINE", None, ("clear", "dark")[visit % 2], None, number))
        length = int(rng.integers(2, 12))
        rows.append((subject, day + timedelta(days=length), "DISCHARGE", None, None, None, number))
    return rows


def write_tidy(folder: Path) -> None:
    rng = np.random.default_rng(11)
    schema = {
        "subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32,
        "text_value": pl.String, "unit": pl.String, "visit": pl.Int64,
    }  # fmt: skip
    subjects = [SECRET + i for i in range(12)]
    for shard, members in zip(SHARDS, (subjects[:6], subjects[6:]), strict=True):
        rows = [row for subject in members for row in tidy_rows(rng, subject)]
        (folder / shard).parent.mkdir(parents=True)
        pq.write_table(pl.DataFrame(rows, schema=schema, orient="row").to_arrow(), folder / shard)
    (folder / "metadata").mkdir()
    codes = pl.DataFrame(
        {
            "code": ["LAB//NA", "URINE"],
            "description": ["Sodium", "Colour of urine"],
            "parent_codes": [["LOINC/2951-2"], []],
        },
        schema_overrides={"parent_codes": pl.List(pl.String)},
    )
    codes.write_parquet(folder / CODES)
    splits = [SPLIT_NAMES[i % 4] for i in range(len(subjects))]
    pl.DataFrame({"subject_id": subjects, "split": splits}).write_parquet(folder / SPLITS)
    (folder / "metadata" / "dataset.json").write_text('{"dataset_name": "tidy"}')


def rewritten(change: Callable[[pa.Table], pa.Table], shards: tuple[str, ...] = SHARDS, **options: Any) -> Change:
    """Reads these files, changes their tables, and writes them with these options."""

    def apply(folder: Path, rng: np.random.Generator) -> None:
        for shard in shards:
            table = pq.ParquetFile(folder / shard).read()
            pq.write_table(change(table), folder / shard, **options)

    return apply


def cast(column: str, dtype: pa.DataType, shards: tuple[str, ...] = SHARDS, **options: Any) -> Change:
    return rewritten(lambda table: with_column(table, column, table[column].cast(dtype)), shards, **options)


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def added(dtype: pa.DataType, value: Any, name: str = "more") -> Change:
    return rewritten(lambda table: table.append_column(name, pa.array([value] * len(table), dtype)))


def recoded(column: str, replace: Callable[[Any], Any], shards: tuple[str, ...] = SHARDS) -> Change:
    """Each value of a column replaced."""

    def change(table: pa.Table) -> pa.Table:
        values = [replace(value) for value in table[column].to_pylist()]
        return with_column(table, column, pa.array(values))

    return rewritten(change, shards)


def row_changed(shard: str = FIRST, row: int = -1, **values: Any) -> Change:
    """One row of a shard (the last one) with other values."""

    def change(table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        rows[row] |= values
        return pa.Table.from_pylist(rows, schema=table.schema)

    return rewritten(change, (shard,))


def not_utf8(column: str) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = [(value or "x").encode() for value in table[column].to_pylist()]
        values[4] = b"secret \xe9"
        raw = pa.array(values, pa.binary())
        return with_column(table, column, pa.Array.from_buffers(pa.string(), len(raw), raw.buffers()))

    return rewritten(change, (SECOND,))


def file_written(name: str, content: bytes = b"junk") -> Change:
    def apply(folder: Path, rng: np.random.Generator) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return apply


def cut_off(name: str) -> Change:
    def apply(folder: Path, rng: np.random.Generator) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(rng.integers(4, len(content) - 1))])

    return apply


def moved(name: str, to: str) -> Change:
    def apply(folder: Path, rng: np.random.Generator) -> None:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(folder / to)

    return apply


def as_folder(name: str, marks: tuple[str, ...] = ("_SUCCESS", ".part-1.parquet.crc")) -> Change:
    """A file as Spark writes it: a folder of that name, whose parts hold the rows."""

    def apply(folder: Path, rng: np.random.Generator) -> None:
        table = pq.read_table(folder / name, partitioning=None)
        (folder / name).unlink()
        (folder / name).mkdir()
        middle = len(table) // 2
        if "subject_id" in table.column_names:  # a subject stays in one part
            ids = table["subject_id"].to_pylist()
            middle = ids.index(ids[middle])
        pq.write_table(table.slice(0, middle), folder / name / "part-0.snappy.parquet")
        pq.write_table(table.slice(middle), folder / name / "part-1.snappy.parquet")
        for mark in marks:
            (folder / name / mark).write_bytes(b"")

    return apply


def linked(name: str, outside: str = "elsewhere") -> Change:
    """A file or folder moved out of the data set, with a link in its place."""

    def apply(folder: Path, rng: np.random.Generator) -> None:
        (folder / name).rename(folder.parent / outside)
        (folder / name).symlink_to(folder.parent / outside)

    return apply


def link(name: str, to: str) -> Change:
    return lambda folder, rng: (folder / name).symlink_to(folder / to)


def table_of_codes(**columns: pa.Array) -> Change:
    return lambda folder, rng: pq.write_table(pa.table(columns), folder / CODES)


def split_subject(folder: Path, rng: np.random.Generator) -> None:
    """One subject's rows lie in two files."""
    table = pq.ParquetFile(folder / FIRST).read()
    pq.write_table(table.slice(0, len(table) - 2), folder / FIRST)
    pq.write_table(table.slice(len(table) - 2), folder / "data" / "train" / "1.parquet")


def one_file(folder: Path, rng: np.random.Generator) -> None:
    tables = [pq.ParquetFile(folder / shard).read() for shard in SHARDS]
    shutil.rmtree(folder / "data")
    (folder / "data").mkdir()
    pq.write_table(pa.concat_tables(tables), folder / "data" / "all.parquet", row_group_size=7)


def all_of(*changes: Change) -> Change:
    def apply(folder: Path, rng: np.random.Generator) -> None:
        for change in changes:
            change(folder, rng)

    return apply


def shift(days: int, **options: Any) -> Change:
    later = pa.scalar(timedelta(days=days), pa.duration("us"))
    return rewritten(lambda table: with_column(table, "time", pc.add(table["time"], later)), **options)
