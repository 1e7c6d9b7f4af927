"""The vocabulary of a CDM: codes and names of the concepts that its events use, and what lies above them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrctx.events.batches import Batch
from ehrctx.events.columns import integers, texts
from ehrctx.events.limits import usable_codes
from ehrctx.events.omop.read import Table, batches
from ehrctx.events.omop.tables import ANCESTOR, CONCEPT, RELATIONSHIP
from ehrctx.events.units import is_missing_unit

CONCEPT_COLUMNS = ("concept_id", "concept_name", "vocabulary_id", "concept_code")


@dataclass(frozen=True)
class Index:
    """Distinct ids in rising order, int64[n], and where to find them."""

    ids: np.ndarray

    def positions(self, wanted: pl.Series) -> pl.Series:
        """The position of each id, uint32[n]; null where it is not there."""
        if not len(self.ids):
            return pl.Series([None] * len(wanted), dtype=pl.UInt32)
        values = wanted.fill_null(0).to_numpy()
        at = np.minimum(np.searchsorted(self.ids, values), len(self.ids) - 1)
        found = pl.Series(self.ids[at] == values) & wanted.is_not_null()
        return pl.Series(at.astype(np.uint32)).set(~found, None)


@dataclass(frozen=True)
class Concepts:
    """Concepts by id: `code` is `VOCABULARY/CODE`, `bare` the code alone, `name` the description."""

    index: Index
    code: pl.Series
    bare: pl.Series
    name: pl.Series

    def of(self, ids: pl.Series) -> pl.DataFrame:
        """(concept_id, code, bare, name) of each id; nulls for 0, and for what CONCEPT does not have."""
        at = self.index.positions(ids.set(ids == 0, None))
        columns = {"code": self.code, "bare": self.bare, "name": self.name}
        known = ids.set(at.is_null(), None).alias("concept_id")
        return pl.DataFrame([known, *(column.gather(at).alias(name) for name, column in columns.items())])


def _with_ids(batch: Batch, column: str, wanted: Index) -> Batch:
    """The rows whose id in `column` is wanted; their row numbers mean nothing any more."""
    there = wanted.positions(integers(batch, column)).is_not_null()
    return Batch(batch.file, batch.first, batch.rows.filter(there))


def read_concepts(table: Table, wanted: np.ndarray) -> Concepts:
    """The concepts with the `wanted` ids. CONCEPT is read batch by batch: these alone are held."""
    index = Index(np.unique(wanted))
    parts = []
    for batch in batches(table, CONCEPT_COLUMNS):
        chosen = _with_ids(batch, "concept_id", index)
        name, vocabulary, bare = (texts(chosen, column) for column in CONCEPT_COLUMNS[1:])
        code, _ = usable_codes(vocabulary + "/" + bare)
        parts.append(pl.DataFrame({"id": integers(chosen, "concept_id"), "code": code, "bare": bare, "name": name}))
    schema = {"id": pl.Int64, "code": pl.String, "bare": pl.String, "name": pl.String}
    found = pl.concat([pl.DataFrame(schema=schema), *parts]).drop_nulls(["id", "code"])
    found = found.unique("id", keep="first", maintain_order=True).sort("id")
    return Concepts(Index(found["id"].to_numpy()), found["code"], found["bare"], found["name"])


def _pairs(batch: Batch, child: str, parent: str) -> pl.DataFrame:
    pairs = pl.DataFrame({"child": integers(batch, child), "parent": integers(batch, parent)})
    return pairs.drop_nulls().filter(pl.col("child") != pl.col("parent"))


def _related(table: Table) -> Iterator[pl.DataFrame]:
    """(child, parent) of valid `Is a`, and of `Maps to`, which leads from a source concept to its standard one."""
    for batch in batches(table, ("concept_id_1", "concept_id_2", "relationship_id"), ("invalid_reason",)):
        reason = texts(batch, "invalid_reason")
        is_valid = pl.select(is_missing_unit(pl.lit(reason))).to_series()  # R writes NA for what is empty
        kept = texts(batch, "relationship_id").is_in(["Is a", "Maps to"]) & is_valid
        yield _pairs(Batch(batch.file, batch.first, batch.rows.filter(kept)), "concept_id_1", "concept_id_2")


def _climbed(ids: np.ndarray, edges: pl.DataFrame) -> np.ndarray:
    """`ids` and everything above them."""
    known, last = ids, ids
    while len(last):  # one level a turn, until nothing new is above
        above = edges.filter(Index(last).positions(edges["child"]).is_not_null())["parent"].unique().to_numpy()
        last = np.setdiff1d(above, known)
        known = np.union1d(known, last)
    return known


def parents(tables: Mapping[str, Table], ids: np.ndarray) -> pl.DataFrame:
    """(child, parent) of direct parents, of the concepts `ids` and of everything above them.

    From CONCEPT_ANCESTOR (one level of separation), and the `Is a` and `Maps to` of CONCEPT_RELATIONSHIP: where both
    are there, both count, since the former knows standard concepts alone. Held in memory: all pairs of the latter, and
    those of the former that lead up from `ids`.
    """
    edges = pl.DataFrame(schema={"child": pl.Int64, "parent": pl.Int64})
    if RELATIONSHIP in tables:
        edges = pl.concat([edges, *_related(tables[RELATIONSHIP])])
    known = _climbed(np.unique(ids), edges)
    if ANCESTOR in tables:
        columns = ("descendant_concept_id", "ancestor_concept_id")
        above = [known]
        for batch in batches(tables[ANCESTOR], columns):
            below = _with_ids(batch, columns[0], Index(known))
            above.append(integers(below, columns[1]).drop_nulls().unique().to_numpy())
        known = np.unique(np.concatenate(above))
        for batch in batches(tables[ANCESTOR], (*columns, "min_levels_of_separation")):
            direct = integers(batch, "min_levels_of_separation") == 1
            below = _with_ids(Batch(batch.file, batch.first, batch.rows.filter(direct)), columns[0], Index(known))
            edges = pl.concat([edges, _pairs(below, *columns)])
    reached = Index(known).positions(edges["child"]).is_not_null()
    return edges.filter(reached).unique(maintain_order=True)


def describe(tables: Mapping[str, Table], ids: np.ndarray) -> pl.DataFrame:
    """(code, description, parent_codes) of the concepts `ids` and of everything above them, sorted by code."""
    edges = parents(tables, ids)
    nodes = np.unique(np.concatenate([ids, edges["child"].to_numpy(), edges["parent"].to_numpy()]))
    concepts = read_concepts(tables[CONCEPT], nodes)
    named = pl.DataFrame({"id": concepts.index.ids, "code": concepts.code, "description": concepts.name})
    above = (
        edges.join(named.select(child="id", code="code"), on="child")
        .join(named.select(parent="id", parent_code="code"), on="parent")
        .filter(pl.col("code") != pl.col("parent_code"))
        .group_by("code")
        .agg(parent_codes=pl.col("parent_code").unique().sort())
    )
    return (
        named.group_by("code", maintain_order=True)
        .agg(pl.col("description").first())
        .join(above, on="code", how="left")
        .select("code", "description", "parent_codes")
        .sort("code")
    )
