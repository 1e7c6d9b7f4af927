"""`ehrctx import femr`: databases of femr 0.2 (meds_reader), and extracts of femr 0.1, as MEDS.

A meds_reader database holds what MEDS held when `meds_reader_convert` made it, except empty texts, which are missing
in it; its properties come back as columns, its `metadata/` as it is.

Source: https://github.com/EthanSteinberg/meds_reader
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.events import femr01
from ehrctx.events.meds import CODES_FILE
from ehrctx.events.writer import EVENTS_PER_SHARD

FIRST = ("time", "code", "numeric_value", "text_value")
VERSION_FILE = "meds_reader.version"


def _require_meds_reader() -> None:
    if importlib.util.find_spec("meds_reader") is None:
        raise InputError(
            "a database of femr 0.2 is read by the package meds_reader, which this environment lacks. Install the "
            "extra with pip install --editable '.[femr]' (Linux, Python before 3.13)."
        )


def _frames(database: Any) -> Iterator[pl.DataFrame]:
    """All events, subjects in the order of their ids, in frames that end with a subject, as many as a shard holds."""
    properties = dict(database.properties)
    names = [name for name in FIRST if name in properties]
    names += [name for name in properties if name not in FIRST]
    schema = pa.schema([("subject_id", pa.int64()), *((name, properties[name]) for name in names)])
    columns: list[list[Any]] = [[] for _ in schema]

    def frame() -> pl.DataFrame:
        arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
        for column in columns:
            column.clear()
        return pl.DataFrame(pl.from_arrow(pa.Table.from_arrays(arrays, schema=schema)))

    for subject_id in sorted(int(subject) for subject in database):
        events = list(database[subject_id].events)
        columns[0].extend([subject_id] * len(events))
        for name, column in zip(names, columns[1:], strict=True):
            column.extend([getattr(event, name) for event in events])
        if len(columns[0]) >= EVENTS_PER_SHARD:
            yield frame()
    if columns[0]:
        yield frame()


def _write_database(source: Path, folder: Path) -> dict[str, Any]:
    """Writes `data/` and `metadata/` of a meds_reader database to `folder`."""
    _require_meds_reader()
    from meds_reader import SubjectDatabase

    database = SubjectDatabase(str(source), num_threads=1)
    (folder / "data").mkdir()
    codes: set[str] = set()
    n_events = 0
    for index, events in enumerate(_frames(database)):
        events.write_parquet(folder / "data" / f"{index:04d}.parquet")
        codes.update(events["code"].unique())
        n_events += events.height
    if not n_events:
        raise InputError(f"{source} holds no events. Convert the data set again.")
    if (source / "metadata").is_dir():
        shutil.copytree(source / "metadata", folder / "metadata")
    if not (folder / CODES_FILE).is_file():
        (folder / "metadata").mkdir(exist_ok=True)
        table = pl.DataFrame({"code": sorted(codes)})
        table.with_columns(
            description=pl.lit(None, pl.String), parent_codes=pl.lit(None, pl.List(pl.String))
        ).write_parquet(folder / CODES_FILE)
    return {
        "subjects": len(database),
        "events": n_events,
        "codes": len(codes),
        "columns": sorted(database.properties),
        "metadata": sorted(path.name for path in (folder / "metadata").iterdir()),
    }


def database_files(folder: Path) -> list[Path]:
    """The files of a meds_reader database or of an extract of femr 0.1. Raises InputError where `folder` is neither."""
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}. Give a meds_reader database or an extract of femr 0.1.")
    if not ((folder / VERSION_FILE).is_file() or femr01.is_extract(folder)):
        raise InputError(
            f"{folder} is neither a meds_reader database (it has no {VERSION_FILE}) nor an extract of femr 0.1 (it has "
            f"no meta, patients and ontology). Give the folder that holds these."
        )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def import_femr(source: Path, out: Path, environment: Path = femr01.ENVIRONMENT) -> dict[str, Any]:
    """Writes the database or extract in the folder `source` to the folder `out` as MEDS. Returns what was counted.

    `environment` is where the packages that read an extract of femr 0.1 are, or are put. Raises InputError where
    `source` is neither, or what reads it is not installed.
    """
    source = Path(source)
    database_files(source)
    is_database = (source / VERSION_FILE).is_file()
    facts: dict[str, Any] = {}
    settings = {"format": "femr", "version": "0.2" if is_database else "0.1"}
    with new_artifact(out, "events", settings, {"events": source}, facts) as folder:
        if is_database:
            facts |= _write_database(source, folder)
        else:
            with tempfile.TemporaryDirectory(prefix=".exported-", dir=folder.parent) as exported:
                femr01.export(source.absolute(), Path(exported).absolute() / "extract", Path(environment))
                facts |= femr01.write_events(Path(exported) / "extract", folder)
    return facts
