"""The steps of `build` as artefacts, so that a cluster runs them as jobs: `count` and `encode` on each part of a data
set, `fit` and `gather` once. What comes out is the folder that `ehrctx tokenize` writes, to the byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.pieces import Piece, pieces_of
from ehrctx.timelines.build import CountedPart, Source, count, encode, finish, fit, new_timelines
from ehrctx.timelines.encoding import added
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.statistics import Statistics
from ehrctx.timelines.vocabulary import Vocabulary

COUNTED, VOCABULARY, ENCODED = "counted events", "vocabulary", "encoded events"


def part_of(pieces: Sequence[Piece], part: str) -> list[tuple[int, Piece]]:
    """The numbered pieces of part `2-of-8`; every 8th, from the second on. Raises InputError for any other text."""
    found = re.fullmatch(r"([1-9][0-9]*)-of-([1-9][0-9]*)", part)
    if not found or int(found[1]) > int(found[2]):
        raise InputError(f"--part {part!r} is not a part such as 2-of-8.")
    first, of = int(found[1]) - 1, int(found[2])
    return list(enumerate(pieces))[first::of]


def count_part(data: Path, profile: str, splits: Path, part: str, out: Path, threads: int) -> dict[str, Any]:
    """Writes the folder `out` of one part's events as integers, and the statistics of its train subjects."""
    source = Source.open(data, profile, splits)
    pieces = part_of(pieces_of(source.dataset), part)
    facts: dict[str, Any] = {}
    choices = {"part": part, "profile": source.profile.model_dump()}
    # its own shards alone: to read all of them for each part would take as long as the work
    shards = {source.dataset.name_of(piece.shard): piece.shard for _, piece in pieces}
    with new_artifact(out, COUNTED, choices, {"splits": splits, **shards}, facts) as folder:
        counted = count(source, pieces, folder, threads)
        counted.statistics.in_order().write(folder)
        facts |= {"events": sum(piece.n_rows for _, piece in pieces), "events_before_origin": counted.early}
        facts |= {"pieces": [piece.name for piece in counted.pieces], "train": counted.statistics.n_subjects}
    return facts


def _read_counted(folder: Path) -> CountedPart:
    facts = read_manifest(folder, COUNTED)["facts"]
    statistics = Statistics.read(folder, facts["train"])
    return CountedPart(tuple(folder / name for name in facts["pieces"]), statistics, facts["events_before_origin"])


def fit_parts(
    data: Path, profile: str, splits: Path, tokenizer: str, counted: Sequence[Path], out: Path
) -> dict[str, Any]:
    """Writes the folder `out` of the vocabulary that is fitted on all parts."""
    source, spec = Source.open(data, profile, splits), load(TokenizerSpec, find_spec(tokenizer))
    facts: dict[str, Any] = {}
    inputs = {"splits": splits, **{f"part {i}": folder for i, folder in enumerate(counted, 1)}}
    with new_artifact(out, VOCABULARY, {"tokenizer": spec.model_dump()}, inputs, facts) as folder:
        parts = [_read_counted(part) for part in counted]
        vocabulary, about = fit(source, parts, spec)
        vocabulary.write(folder)
        facts |= {**about, "events_before_origin": sum(part.early for part in parts)}
    return facts


def encode_part(
    data: Path, profile: str, splits: Path, counted: Path, vocabulary: Path, out: Path, threads: int
) -> dict[str, Any]:
    """Writes the folder `out` of one part's tokens, and what became of its events."""
    source = Source.open(data, profile, splits)
    spec = TokenizerSpec.model_validate(read_manifest(vocabulary, VOCABULARY)["settings"]["tokenizer"])
    facts: dict[str, Any] = {}
    inputs = {"counted": counted, "vocabulary": vocabulary}
    with new_artifact(out, ENCODED, {"profile": source.profile.model_dump()}, inputs, facts) as folder:
        pieces = _read_counted(counted).pieces
        coverage = encode(source, pieces, Vocabulary.read(vocabulary), spec, folder, threads)
        coverage.write_parquet(folder / "coverage.parquet")
        facts["pieces"] = [piece.name for piece in pieces]
    return facts


def gather_parts(
    data: Path, profile: str, splits: Path, vocabulary: Path, encoded: Sequence[Path], out: Path
) -> dict[str, Any]:
    """Writes the folder `out` of timelines from all parts."""
    source, fitted = Source.open(data, profile, splits), read_manifest(vocabulary, VOCABULARY)
    spec = TokenizerSpec.model_validate(fitted["settings"]["tokenizer"])
    facts: dict[str, Any] = {}
    with new_timelines(data, source, splits, spec, out, facts) as folder:
        pieces = {name: part / name for part in encoded for name in read_manifest(part, ENCODED)["facts"]["pieces"]}
        coverage = added([pl.read_parquet(part / "coverage.parquet") for part in encoded])
        facts |= finish(Vocabulary.read(vocabulary), coverage, [pieces[name] for name in sorted(pieces)], folder)
        facts |= fitted["facts"]
    return facts
