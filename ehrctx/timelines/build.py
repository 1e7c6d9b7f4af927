"""`ehrctx tokenize`: events -> counted pieces -> vocabulary -> encoded pieces -> the store.

The four steps are functions of their own, since a cluster makes them jobs of their own (pipelines/rules/timelines.smk):
counting and encoding run on any part of the data set beside the others, fitting and gathering once. The result does not
depend on how many parts, shards or threads there are.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset, open_dataset, read_codes
from ehrctx.events.ontology import parents_of
from ehrctx.events.pieces import Piece, pieces_of
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.rules import NO_EVENTS, refuse, subjects_in_two_shards
from ehrctx.events.shards import read_piece
from ehrctx.events.splits import DEFAULT_PRIVACY, read_splits
from ehrctx.study import Privacy
from ehrctx.timelines.adaptation import extended, mapping_of, read_vocabulary, spec_of
from ehrctx.timelines.counting import Counted, Unplaced, count_piece, splits_of
from ehrctx.timelines.coverage import coverage_facts
from ehrctx.timelines.encoding import Encoder, total_coverage
from ehrctx.timelines.gather import gather, write_piece
from ehrctx.timelines.lookup import Lookup
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.statistics import Accumulator, Statistics
from ehrctx.timelines.store import KIND
from ehrctx.timelines.vocabulary import Vocabulary, fit_vocabulary

A = TypeVar("A")
B = TypeVar("B")
COVERAGE_ROWS = 1_000_000  # that wait to be added up


def _side_by_side(run: Callable[[A], B], given: Iterable[A], threads: int) -> Iterator[B]:
    """The results in order; no more than `threads` of them are made, and wait, at a time."""
    with ThreadPoolExecutor(threads) as pool:
        rest = iter(given)
        ahead = deque(pool.submit(run, one) for one in islice(rest, threads))
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(run, one) for one in islice(rest, 1))
            yield result


@dataclass(frozen=True)
class Source:
    """What the tokens are made from."""

    dataset: Dataset
    profile: DatasetProfile
    splits: pl.DataFrame  # (subject_id, split), by subject_id
    privacy: Privacy  # of the counts in messages

    @classmethod
    def open(cls, data: Path, profile: str, splits: Path, privacy: Privacy = DEFAULT_PRIVACY) -> Source:
        """`profile` is the name of a shipped file, or a path."""
        chosen = load(DatasetProfile, find_profile(profile))
        return cls(open_dataset(data), chosen, read_splits(splits).sort("subject_id"), privacy)

    @cached_property
    def _metadata(self) -> pl.DataFrame:
        return read_codes(self.dataset)

    @cached_property
    def codes(self) -> pl.DataFrame:
        """(code, description), each code once."""
        return self._metadata.select("code", "description").unique("code", keep="first", maintain_order=True)

    @cached_property
    def parents(self) -> pl.DataFrame:
        """(code, parent)."""
        return parents_of(self._metadata)


@dataclass(frozen=True)
class CountedPart:
    """Some pieces of a data set as integers."""

    pieces: tuple[Path, ...]  # folders of `Counted`
    statistics: Statistics  # of their train subjects
    unplaced: Unplaced


def count(source: Source, pieces: Sequence[tuple[int, Piece]], out: Path, threads: int) -> CountedPart:
    """Writes each numbered piece as integers to a folder in `out`."""

    def one(numbered: tuple[int, Piece]) -> tuple[Path, Statistics, Unplaced]:
        number, piece = numbered
        name = source.dataset.name_of(piece.shard)
        events = read_piece(source.dataset, piece, source.profile)
        try:
            split = splits_of(events.subjects, source.splits, source.privacy)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        counted, statistics, unplaced = count_piece(events, split, source.profile.birth)
        folder = out / f"{number:06d}"
        counted.write(folder)
        return folder, statistics, unplaced

    total, unplaced, folders = Accumulator(), Unplaced(), []
    for folder, statistics, unplaced_of_piece in _side_by_side(one, pieces, threads):
        folders.append(folder)
        total.add(statistics)
        unplaced += unplaced_of_piece
    return CountedPart(tuple(folders), total.result(), unplaced)


def _check_pieces(dataset: Dataset, numbered: Sequence[tuple[int, Piece]], counted: Sequence[Path]) -> None:
    """Raises InputError if a piece is missing, or a subject is in two pieces."""
    if [folder.name for folder in counted] != [f"{number:06d}" for number, _ in numbered]:
        raise InputError(
            f"the counted parts hold {len(counted):,} pieces of a data set of {len(numbered):,}, or some twice. Give "
            f"all parts of the same division."
        )
    ids = [np.load(folder / "subjects.npy")["subject_id"] for folder in counted]
    named = [(dataset.name_of(piece.shard), own) for (_, piece), own in zip(numbered, ids, strict=True)]
    refuse(subjects_in_two_shards(named), dataset)


class Existing(NamedTuple):
    """A vocabulary that is applied, not fitted: its folder, whether it is adapted (see `adaptation`), and how many
    tokens are added to it."""

    folder: Path
    adapts: bool
    extend: int


def spec_for(tokenizer: str | None, existing: Existing | None) -> TokenizerSpec:
    """The spec of that name or path; that of an existing vocabulary where none is named; else clmbr's."""
    own = spec_of(existing.folder) if existing and tokenizer is None else None
    return own or load(TokenizerSpec, find_spec(tokenizer or "clmbr"))


def fit(
    source: Source, parts: Sequence[CountedPart], spec: TokenizerSpec, existing: Existing | None = None
) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary for all parts of a data set, and facts about it.

    Raises InputError if a subject is in two shards, or there are no events.
    """
    folders = sorted((folder for part in parts for folder in part.pieces), key=lambda folder: folder.name)
    pieces = pieces_of(source.dataset)
    _check_pieces(source.dataset, list(enumerate(pieces)), folders)
    if not any(piece.n_rows for piece in pieces):
        refuse([NO_EVENTS], source.dataset)
    codes, parents = source.codes, source.parents
    statistics = parts[0].statistics if len(parts) == 1 else Statistics.merged(part.statistics for part in parts)
    if existing is None:
        vocabulary, facts = fit_vocabulary(statistics, spec, codes, parents)
        return vocabulary, {"fitted_on": "train", **facts}
    given = read_vocabulary(existing.folder, spec)
    vocabulary = extended(given, statistics, spec, codes, parents, existing.extend)
    return vocabulary, {"fitted_on": None, "added_tokens": vocabulary.tokens.height - given.tokens.height}


def width_of(vocabulary: Vocabulary) -> np.dtype:
    """Of a token in the store."""
    return np.dtype(np.uint16 if vocabulary.tokens.height < 2**16 else np.uint32)


def encode(
    source: Source,
    counted: Sequence[Path],
    vocabulary: Vocabulary,
    spec: TokenizerSpec,
    existing: Existing | None,
    out: Path,
    threads: int,
) -> pl.DataFrame:
    """Writes the tokens of each counted piece to a folder of the same name in `out`; returns their COVERAGE."""
    adapts = existing is not None and existing.adapts
    lookup = Lookup(vocabulary, spec, source.codes, source.parents, adapts)
    encoder = Encoder(lookup, vocabulary.tokens, spec, source.profile)

    def one(folder: Path) -> pl.DataFrame:
        piece = Counted.read(folder)
        encoded = encoder.encode(piece)
        write_piece(piece, encoded, width_of(vocabulary), out / folder.name)
        return encoded.coverage

    met = [total_coverage([])]
    for own in _side_by_side(one, counted, threads):
        met.append(own)
        if sum(part.height for part in met) > COVERAGE_ROWS:
            met = [total_coverage(met)]
    return total_coverage(met)


def build_timelines(
    data: Path,
    profile: str,
    splits: Path,
    tokenizer: str | None,
    out: Path,
    threads: int = 2,
    existing: Existing | None = None,
    privacy: Privacy = DEFAULT_PRIVACY,
) -> dict[str, Any]:
    """Fits the vocabulary on the train split, or takes an `existing` one; encodes every subject; writes the store.

    `profile` and `tokenizer` are names of shipped files, or paths. Returns the facts of the manifest: see `finish`.
    """
    source, spec = Source.open(data, profile, splits, privacy), spec_for(tokenizer, existing)
    facts: dict[str, Any] = {}
    with new_timelines(source, splits, spec, existing, out, facts) as folder:
        counted, encoded = folder / ".counted", folder / ".encoded"
        counted.mkdir()
        encoded.mkdir()
        part = count(source, list(enumerate(pieces_of(source.dataset))), counted, threads)
        vocabulary, about = fit(source, [part], spec, existing)
        coverage = encode(source, part.pieces, vocabulary, spec, existing, encoded, threads)
        finish(source, vocabulary, existing, coverage, [encoded / piece.name for piece in part.pieces], folder, facts)
        facts |= {**about, **asdict(part.unplaced)}
        shutil.rmtree(counted)
        shutil.rmtree(encoded)
    return facts


@contextmanager
def new_timelines(
    source: Source,
    splits: Path,
    spec: TokenizerSpec,
    existing: Existing | None,
    out: Path,
    facts: dict[str, Any],
) -> Iterator[Path]:
    """A folder for the store, with its provenance."""
    choices: dict[str, Any] = {"tokenizer": spec.model_dump(), "profile": source.profile.model_dump()}
    inputs = {"events": source.dataset.source(), "splits": splits}
    if existing is not None:
        choices["existing"] = {"adapts": existing.adapts, "extend": existing.extend}
        inputs["vocabulary"] = existing.folder
    with new_artifact(out, KIND, choices, inputs, facts) as folder:
        yield folder


def finish(
    source: Source,
    vocabulary: Vocabulary,
    existing: Existing | None,
    coverage: pl.DataFrame,
    encoded: Sequence[Path],
    folder: Path,
    facts: dict[str, Any],
) -> None:
    """Writes all files of the store but the manifest, and adds `facts` about them."""
    vocabulary.write(folder)
    coverage.write_parquet(folder / "coverage.parquet")
    if existing is not None and existing.adapts:
        mapping = mapping_of(coverage, vocabulary, source.codes, source.parents)
        mapping.write_parquet(folder / "mapping.parquet")
    subjects, n_all = gather(encoded, width_of(vocabulary), folder)
    n_tokens = int(np.load(folder / "offsets.npy", mmap_mode="r")[-1])
    ages = vocabulary.tokens.filter(kind="age")
    facts |= {
        "vocabulary_size": vocabulary.tokens.height,
        "subjects": len(subjects),
        "subjects_without_token": n_all - len(subjects),
        "tokens": n_tokens,
        "first_age_token": int(ages["token"][0]) if ages.height else None,
        **coverage_facts(coverage),
    }
