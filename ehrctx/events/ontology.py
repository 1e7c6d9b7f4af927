"""From concepts (LOINC, ICD-10-CM, …) to the codes that one data set uses, through `parent_codes`."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

# Diagnosis systems whose hierarchy is the prefix of the code without its dot, as data sets rarely ship it.
PREFIX_SYSTEMS = ("ICD10CM", "ICD9CM")


def _belongs(concept: pl.Expr, concepts: Mapping[str, tuple[str, ...]]) -> pl.Expr:
    found = pl.lit(False)
    for system, members in concepts.items():
        if system in PREFIX_SYSTEMS:
            bare = concept.str.replace_all(".", "", literal=True)
            for member in members:
                found = found | bare.str.starts_with(f"{system}/{member.replace('.', '')}")
        else:
            found = found | concept.is_in([f"{system}/{member}" for member in members])
    return found


def codes_of(concepts: Mapping[str, tuple[str, ...]], used: pl.Series, codes: pl.DataFrame) -> set[str]:
    """The codes that belong to `concepts`: by their own name `SYSTEM/CODE` or through their ancestors.

    `concepts` maps a system to its codes; ICD codes stand for all codes they begin. `used` are the codes of the data
    set, `codes` its metadata (code, description, parent_codes).
    """
    edges = codes.select("code", parent="parent_codes").explode("parent").drop_nulls()
    everything = pl.concat([used.cast(pl.String), edges["code"], edges["parent"]]).unique()
    members = set(everything.to_frame("code").filter(_belongs(pl.col("code"), concepts))["code"])
    while True:  # climb one level a turn, until nothing new belongs
        found = set(edges.filter(pl.col("parent").is_in(list(members)))["code"]) - members
        if not found:
            return members & set(used)
        members |= found
