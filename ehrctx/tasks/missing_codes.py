"""What tasks ask for and a data set does not have, named before labels are made.

A laboratory task whose concepts match no code has no label, and a diagnosis is negative for everybody: in a small data
set that may be right, in a large one it is mostly a hierarchy that is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import polars as pl

from ehrctx.events.meds import Dataset
from ehrctx.events.ontology import codes_of
from ehrctx.events.parquet import read_parquet
from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.tasks.definition import Definition, Laboratory

NAMED = 5  # concepts in a warning; the facts of the labels have all
# Keys of a profile without whose events a task is still answered, but wrongly. Without stays it is refused.
ANSWERED_WITHOUT = {"icu_admission": "no patient comes to intensive care", "death": "nobody dies"}
NO_CODES = pl.DataFrame(schema={"code": pl.String, "parent_codes": pl.List(pl.String)})


def used_codes(dataset: Dataset) -> pl.Series:
    """The distinct codes of all events. Raises BrokenFile where a shard cannot be read."""
    parts = [pl.Series("code", [], dtype=pl.String)]
    for shard in dataset.shards:
        held = read_parquet(shard, dataset.name_of(shard), columns=["code"])
        if held.width:  # a file without codes is refused where its events are read
            parts.append(held["code"].cast(pl.String).unique())
    return pl.concat(parts).drop_nulls().unique()


def with_ancestors(used: pl.Series, codes: pl.DataFrame) -> pl.Series:
    """`used` and all names above them; `codes` are the metadata (code, description, parent_codes)."""
    edges = codes.select("code", parent="parent_codes").explode("parent").drop_nulls().unique()
    reached = last = used.alias("code").to_frame()
    while last.height:  # climb one level a turn, until nothing new is above
        last = edges.join(last, on="code", how="semi").select(code="parent").unique()
        last = last.join(reached, on="code", how="anti")
        reached = pl.concat([reached, last])
    return reached["code"]


def concepts_without_codes(definition: Definition, reached: pl.Series) -> list[str]:
    """The task's concepts (`LOINC/718-7`) that no code belongs to; `reached` is what `with_ancestors` gives."""
    return [
        f"{system}/{member}"
        for system, members in definition.concepts.items()
        for member in members
        if not codes_of({system: (member,)}, reached, NO_CODES)
    ]


def _warn(sentence: str) -> None:
    print(f"warning: {sentence}", file=sys.stderr, flush=True)


def warn_of_concepts(definition: Definition, missing: Sequence[str]) -> None:
    """Says so where all of the task's concepts are `missing`: some mostly are, as tasks name those of all sites."""
    n_concepts = sum(map(len, definition.concepts.values()))
    if not n_concepts or len(missing) < n_concepts:
        return
    outcome = "has no label" if isinstance(definition, Laboratory) else "is negative for everybody"
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    _warn(
        f"the task {definition.task!r} {outcome}: no event has a code of or below {', '.join(missing[:NAMED])}{more}. "
        f"Give an ontology (`--ontology`, the study's `ontology`), parents in metadata/codes.parquet (`parent_codes`), "
        f"or a definition of your own that names the data's codes."
    )


def warn_of_profile(definitions: Sequence[Definition], profile: DatasetProfile, used: pl.Series) -> None:
    """Names the keys of the profile that tasks need and no event matches."""
    codes = used.alias("code").to_frame()
    for key, outcome in ANSWERED_WITHOUT.items():
        tasks = [definition.task for definition in definitions if key in definition.needs]
        patterns = getattr(profile, key)
        if tasks and codes.filter(matches(pl.col("code"), patterns)).is_empty():
            _warn(
                f"{outcome}, for {', '.join(tasks)}: no event matches `{key}` ({', '.join(patterns)}) of the profile "
                f"{profile.name!r}. Check the profile."
            )


def warn_of_units(definition: Laboratory, profile: DatasetProfile) -> None:
    """Says that no number of the task has a unit that it knows."""
    _warn(
        f"the task {definition.task!r} has no label from a number: no result is in a unit of its `conversions` "
        f"({', '.join(definition.conversions)}). Check `unit_column` and `unit_in_code` of the profile "
        f"{profile.name!r} (`ehrctx label --explain` shows a subject's units), or add the data's unit and its factor "
        f"in a definition of your own."
    )
