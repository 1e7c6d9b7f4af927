"""`ehrctx import omop`: an OMOP CDM 5.3 or 5.4 as CSV or parquet -> a MEDS data set.

A first pass counts rows and collects the concepts that are used, so that of a vocabulary of millions only these are
held; a second one makes the events. Memory holds PERSON's ids and births, the concepts used, and a few batches.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx import __version__
from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.events.columns import integers, texts
from ehrctx.events.meds import BIRTH, SPLITS
from ehrctx.events.omop.concepts import describe, read_concepts
from ehrctx.events.omop.people import TRAIT_COLUMNS, read_people
from ehrctx.events.omop.read import UNREAD, Cdm, Table, batches, find_cdm, table_inputs, uneven_columns
from ehrctx.events.omop.rows import (
    DEATH,
    END,
    Importer,
    Numbers,
    Used,
    events_of,
    optional_columns,
    person_columns,
    person_events,
    required_columns,
)
from ehrctx.events.omop.tables import CARE_SITE, CONCEPT, EVENT_TABLES, PERSON, SOURCE, EventTable
from ehrctx.events.splits import hash_splits
from ehrctx.events.writer import ShardWriter, sharded, shards_for, write_metadata
from ehrctx.inventory import tell_inventory
from ehrctx.study import HashSplits, OmopOptions

CODES: dict[str, Any] = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}
NAMES = {BIRTH: "Birth", DEATH: "Death"}


def _present(tables: Mapping[str, Table]) -> Iterator[tuple[EventTable, Table]]:
    return ((events, tables[events.name]) for events in EVENT_TABLES if events.name in tables)


def _survey(tables: Mapping[str, Table]) -> tuple[int, np.ndarray]:
    """How many rows the tables with events have, and the concept ids that these use, distinct."""
    used: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    n_rows = 0
    everything = [(tables[PERSON], [name for name in TRAIT_COLUMNS if name.endswith("concept_id")])]
    everything += [(table, list(events.concepts)) for events, table in _present(tables)]
    for table, columns in everything:
        for batch in batches(table, ("person_id",), columns):
            n_rows += batch.rows.height
            for column in batch.rows.columns[1:]:
                used.append(integers(batch, column).drop_nulls().unique().to_numpy())
            used = [np.unique(np.concatenate(used))]
    return n_rows, used[0]


def _events(importer: Importer, tables: Mapping[str, Table], writer: ShardWriter) -> dict[str, Any]:
    """Adds all events to the writer; what was counted, by table."""
    counted: dict[str, Counter[str]] = {PERSON: Counter()}
    for batch in batches(tables[PERSON], ("person_id",), person_columns()):
        for events, rank in person_events(importer, batch, counted[PERSON]):
            writer.add(events, rank)
    for kind, table in _present(tables):
        counted[kind.name] = Counter()
        for batch in batches(table, required_columns(kind), optional_columns(kind)):
            for events, rank in events_of(importer, kind, batch, counted[kind.name]):
                writer.add(events, rank)
        importer.numbers.get(kind.name, Numbers()).refuse()
    return {name: _nested(counts) for name, counts in counted.items()}


def _nested(counts: Counter[str]) -> dict[str, Any]:
    """`left_out.no_person` -> {left_out: {no_person: n}}; zeros but for rows and events are not told."""
    told: dict[str, Any] = {name: counts[name] for name in ("rows", "rows_imported", "events")}
    for name, n in counts.items():
        group, _, reason = name.rpartition(".")
        if n and name not in told:
            (told.setdefault(group, {}) if group else told)[reason] = n
    return told


def _care_sites(tables: Mapping[str, Table], used: set[int]) -> pl.DataFrame:
    names: dict[int, str | None] = dict.fromkeys(used)
    for batch in batches(tables[CARE_SITE], ("care_site_id",), ("care_site_name",)) if CARE_SITE in tables else ():
        for site, name in zip(integers(batch, "care_site_id"), texts(batch, "care_site_name"), strict=True):
            if site in names:
                names[site] = name
    rows = [(f"CARE_SITE/{site}", name, None) for site, name in sorted(names.items())]
    return pl.DataFrame(rows, schema=CODES, orient="row")


def _codes(tables: Mapping[str, Table], used: Used) -> pl.DataFrame:
    """(code, description, parent_codes) of all codes of the events, and of everything above them."""
    ids = np.unique(np.array([concept for _, concept in used.concepts | used.ends], dtype=np.int64))
    concepts = describe(tables, ids)
    own = read_concepts(tables[CONCEPT], ids)
    prefixed = [
        (prefix + code, name, [code])
        for prefix, concept in sorted(used.concepts)
        if prefix
        for code, _, name in [own.of(pl.Series([concept])).row(0)[1:]]
    ]
    ends = [
        (f"{prefix}{code}{END}", f"{name}: end", None)
        for prefix, concept in sorted(used.ends)
        for code, _, name in [own.of(pl.Series([concept])).row(0)[1:]]
    ]
    others = [(code, NAMES.get(code), None) for code in sorted(used.others)]
    rows = pl.DataFrame([*prefixed, *ends, *others], schema=CODES, orient="row")
    every = pl.concat([concepts, rows, _care_sites(tables, used.care_sites)])
    return every.unique("code", keep="first").sort("code")


def _name(tables: Mapping[str, Table], folder: Path) -> str:
    """What CDM_SOURCE calls the data, else the folder's name."""
    for batch in batches(tables[SOURCE], (), ("cdm_source_name",)) if SOURCE in tables else ():
        named = texts(batch, "cdm_source_name").drop_nulls()
        if len(named):
            return str(named[0])
    return folder.resolve().name


def _warn(cdm: Cdm, verbose: bool) -> None:
    """Names, on standard error, the files that nobody reads and what looks odd; and if `verbose` those ignored."""
    tell_inventory(cdm.inventory, UNREAD, verbose)
    warnings = list(cdm.warnings)
    for kind, table in _present(cdm.tables):
        for file, columns in uneven_columns(table, optional_columns(kind)):
            warnings.append(f"{file} has not {', '.join(columns)}, which other parts of the table have.")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)


def import_omop(
    folder: Path, out: Path, options: OmopOptions, splits: HashSplits, verbose: bool = False
) -> dict[str, Any]:
    """Writes the CDM in `folder` to the folder `out` as MEDS 0.4. Returns what was counted.

    Warns of files that nobody reads; `verbose` also lists those that are ignored by rule. Raises InputError, with file
    and row, where a table cannot be read as what the CDM says it is.
    """
    folder = Path(folder)
    cdm = find_cdm(folder)
    tables = cdm.tables
    if not any(True for _ in _present(tables)):
        names = ", ".join(events.name for events in EVENT_TABLES)
        raise InputError(f"{folder} has no table with events. Export those that there are of {names}.")
    _warn(cdm, verbose)
    facts: dict[str, Any] = {}
    settings = {"format": "omop", **options.model_dump(), "splits": splits.model_dump()}
    with new_artifact(out, "events", settings, table_inputs(folder, tables), facts) as made:
        n_rows, concept_ids = _survey(tables)
        concepts = read_concepts(tables[CONCEPT], concept_ids)
        people = read_people(tables[PERSON])
        importer = Importer(people, concepts, options.codes, options.before_birth, options.implausible_time, Used())
        with sharded(made, shards_for(n_rows)) as writer:
            by_table = _events(importer, tables, writer)
        subjects = importer.people.subjects()
        split = hash_splits(subjects, splits)
        about = {
            "dataset_name": _name(tables, folder),
            "etl_name": "ehrctx import omop",
            "etl_version": __version__,
        }
        codes = _codes(tables, importer.used)
        write_metadata(made, about, codes, split)
        shares = dict(split["split"].value_counts().iter_rows())
        facts |= {"subjects": len(subjects), "events": writer.n_events, "codes": codes.height, "tables": by_table}
        facts["files"] = cdm.inventory.facts()
        facts["splits"] = {name: shares.get(name, 0) for name in SPLITS}
    empty = [name for name, n in facts["splits"].items() if not n]
    if empty:
        said = f"warning: the subjects are so few that the split {', '.join(empty)} is empty."
        print(f"{said} Give other shares or another seed (--splits), or set the study key `splits`.", file=sys.stderr)
    return facts
