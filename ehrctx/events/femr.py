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
from ehrctx.events.event_rows import ALTERED_CODES, BIRTHS, IMPLAUSIBLE_START, MADE_STATIC, Counts
from ehrctx.events.limits import IMPLAUSIBLE, is_implausible, usable_codes
from ehrctx.events.meds import CODES_FILE
from ehrctx.events.writer import EVENTS_PER_SHARD
from ehrctx.inventory import Inventory, files_below, tell_inventory

FIRST = ("time", "code", "numeric_value", "text_value")
VERSION_FILE = "meds_reader.version"
PROPERTY_FILES = ("data", "dictionary", "zdict")


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


def _usable(events: pl.DataFrame, counts: Counts, implausible_time: str, source: Path) -> pl.DataFrame:
    """The events that MEDS can hold; what is left out or altered is counted. Subjects are whole."""
    code, is_altered = usable_codes(events["code"])
    birth = pl.col("time").filter(pl.col("code").is_in(BIRTHS)).min().over("subject_id")
    is_birth = (pl.col("time") == birth).fill_null(False)
    implausible = events.select(is_implausible(pl.col("time")) & ~is_birth).to_series()
    if implausible_time == "refuse" and implausible.any():
        raise InputError(f"{source} holds an event whose time {IMPLAUSIBLE}")
    counts.adjust(ALTERED_CODES, int((is_altered & ~implausible).sum()))
    for reason, broken in (("without a code", code.is_null()), (IMPLAUSIBLE_START, implausible & code.is_not_null())):
        if n := int(broken.sum()):
            counts.left_out[reason] += n
    usable = events.with_columns(code).filter(~implausible & code.is_not_null())
    is_static = usable.select(is_implausible(pl.col("time")) & ~pl.col("code").is_in(BIRTHS)).to_series()
    if not is_static.any():
        return usable
    counts.adjust(MADE_STATIC, int(is_static.sum()))
    usable = usable.with_columns(usable["time"].set(is_static, None))
    return usable.sort("subject_id", pl.col("time").is_not_null(), maintain_order=True)


def _write_database(source: Path, folder: Path, implausible_time: str) -> dict[str, Any]:
    """Writes `data/` and `metadata/` of a meds_reader database to `folder`."""
    _require_meds_reader()
    from meds_reader import SubjectDatabase

    database = SubjectDatabase(str(source), num_threads=1)
    (folder / "data").mkdir()
    codes: set[str] = set()
    counts = Counts()
    n_rows = n_events = 0
    for index, rows in enumerate(_frames(database)):
        events = _usable(rows, counts, implausible_time, source)
        events.write_parquet(folder / "data" / f"{index:04d}.parquet")
        codes.update(events["code"].unique())
        n_rows += rows.height
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
        "rows": n_rows,
        "events": n_events,
        **counts.facts(),
        "codes": len(codes),
        "columns": sorted(database.properties),
        "metadata": sorted(path.name for path in (folder / "metadata").iterdir()),
    }


def femr_inventory(folder: Path) -> Inventory:
    """What the files of a meds_reader database or of an extract of femr 0.1 are.

    Raises InputError where `folder` is neither.
    """
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}. Give a meds_reader database or an extract of femr 0.1.")
    is_database = (folder / VERSION_FILE).is_file()
    if not (is_database or femr01.is_extract(folder)):
        raise InputError(
            f"{folder} is neither a meds_reader database (it has no {VERSION_FILE}) nor an extract of femr 0.1 (it has "
            f"no meta, patients and ontology). Give the folder that holds these."
        )

    def rule(relative: Path) -> str | None:
        top, *below = relative.parts
        is_property = len(below) == 1 and below[0] in PROPERTY_FILES
        is_part = top in ("metadata", "subject_id") or top.startswith("meds_reader.")
        # of an extract, femr's own package knows the files
        return "" if not is_database or is_property or is_part else None

    return Inventory.of(folder, files_below(folder), rule)


def database_files(folder: Path) -> list[Path]:
    """The files of a meds_reader database or of an extract of femr 0.1. Raises InputError where `folder` is neither."""
    return sorted(femr_inventory(folder).read)


def import_femr(
    source: Path,
    out: Path,
    environment: Path = femr01.ENVIRONMENT,
    implausible_time: str = "refuse",
    verbose: bool = False,
) -> dict[str, Any]:
    """Writes the database or extract in the folder `source` to the folder `out` as MEDS. Returns what was counted.

    `environment` is where the packages that read an extract of femr 0.1 are, or are put. `implausible_time`: refuse or
    drop events whose time is a placeholder. Warns of files that nobody reads; `verbose` also lists those that are
    ignored by rule. Raises InputError where `source` is neither, or what reads it is not installed.
    """
    source = Path(source)
    inventory = femr_inventory(source)
    tell_inventory(inventory, "They are no part of a meds_reader database: keep them elsewhere.", verbose)
    is_database = (source / VERSION_FILE).is_file()
    facts: dict[str, Any] = {}
    settings = {"format": "femr", "version": "0.2" if is_database else "0.1", "implausible_time": implausible_time}
    with new_artifact(out, "events", settings, {"events": source}, facts) as folder:
        if is_database:
            facts |= _write_database(source, folder, implausible_time)
        else:
            with tempfile.TemporaryDirectory(prefix=".exported-", dir=folder.parent) as exported:
                femr01.export(source.absolute(), Path(exported).absolute() / "extract", Path(environment))
                facts |= femr01.write_events(Path(exported) / "extract", folder, implausible_time)
        facts["files"] = inventory.facts()
    return facts
