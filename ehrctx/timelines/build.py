"""`ehrctx tokenize`: events of a MEDS data set -> vocabulary (train split only) and timelines (all splits)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset, open_dataset, read_codes, subjects_in_two_shards
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.shards import read_shard
from ehrctx.events.splits import read_splits
from ehrctx.timelines.spec import TokenizerSpec, find_spec
from ehrctx.timelines.store import KIND, SUBJECT
from ehrctx.timelines.tokenizer import OUTCOMES, Encoder
from ehrctx.timelines.vocabulary import count_entries, fit_vocabulary, merge_entries

MAX_SECONDS = 2**32 - 1


def _split_shards(
    dataset: Dataset, profile: DatasetProfile, splits: pl.DataFrame
) -> Iterator[tuple[Path, pl.DataFrame]]:
    """Each shard's events with a column `split`; events of subjects without one are an error."""
    for shard in dataset.shards:
        events = read_shard(dataset, shard, profile).join(splits, on="subject_id", how="left", maintain_order="left")
        without = events.filter(pl.col("split").is_null())["subject_id"].n_unique()
        if without:
            raise InputError(f"{dataset.name_of(shard)}: {without:,} subjects have no split. Make the splits again.")
        yield shard, events


def _clock(events: pl.DataFrame, birth: str) -> pl.DataFrame:
    """(subject_id, origin, born) of each subject of a shard."""
    return (
        events.group_by("subject_id", maintain_order=True)
        .agg(_birth=pl.col("time").filter(pl.col("code") == birth).min(), _first=pl.col("time").min())
        .select(
            "subject_id", origin=pl.coalesce("_birth", "_first").dt.truncate("1s"), born=pl.col("_birth").is_not_null()
        )
    )


def _timelines_of(encoded: pl.DataFrame, clock: pl.DataFrame) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """One shard's subjects (SUBJECT[n]), flat arrays with lengths, and how many events were before the origin."""
    timed = encoded.join(clock, on="subject_id", how="left", maintain_order="left").with_columns(
        _since=(pl.col("time") - pl.col("origin")).dt.total_microseconds()
    )
    early = int((timed["_since"] < 0).sum() or 0)
    # rounded up; an event before the origin counts as known from the origin on
    seconds = timed.select(pl.col("_since").clip(0).fill_null(0).add(999_999).floordiv(1_000_000)).to_series()
    if len(seconds) and int(seconds.max()) > MAX_SECONDS:  # type: ignore[arg-type]
        raise InputError("an event lies more than 136 years after its subject's birth. Mend its time or the birth.")
    per_subject = timed.group_by("subject_id", maintain_order=True).agg(
        pl.col("split").first(),
        pl.col("origin").first(),
        pl.col("born").first(),
        n_static=pl.col("time").is_null().sum(),
        length=pl.len(),
    )
    subjects = np.zeros(per_subject.height, dtype=SUBJECT)
    for name in SUBJECT.names or ():
        subjects[name] = per_subject[name].to_numpy()
    flat = {
        "tokens": timed["token"].to_numpy(),
        "seconds": seconds.cast(pl.UInt32).to_numpy(),
        "event": timed["event"].to_numpy(),
        "lengths": per_subject["length"].to_numpy().astype(np.int64),
    }
    return subjects, flat, early


def _by_subject_id(subjects: np.ndarray, flat: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Subjects in ascending order of id, so that the store does not depend on how the data set is sharded."""
    order = np.argsort(subjects["subject_id"], kind="stable")
    starts = np.cumsum(flat["lengths"]) - flat["lengths"]
    lengths = flat["lengths"][order]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    gather = np.repeat(starts[order] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return subjects[order], {k: flat[k][gather] for k in ("tokens", "seconds", "event")} | {"offsets": offsets}


def build_timelines(data: Path, profile: str, splits_file: Path, tokenizer: str, out: Path) -> dict[str, Any]:
    """Fits the vocabulary on the train split, encodes every subject, and writes the store to the folder `out`.

    `profile` and `tokenizer` are names of shipped files, or paths.
    Returns the facts of its manifest: vocabulary_size, subjects, tokens, events by outcome, coverage.
    """
    dataset = open_dataset(data)
    written_by = load(DatasetProfile, find_profile(profile))
    spec = load(TokenizerSpec, find_spec(tokenizer))
    splits = read_splits(splits_file)
    descriptions = read_codes(dataset).select("code", "description")
    facts: dict[str, Any] = {"fitted_on": "train"}
    inputs = {"events": data, "splits": splits_file}
    choices = {"tokenizer": spec.model_dump(), "profile": written_by.model_dump()}
    with new_artifact(out, KIND, choices, inputs, facts) as folder:
        entries, n_train, ids = [], 0, {}
        for shard, events in _split_shards(dataset, written_by, splits):
            train = events.filter(pl.col("split") == "train")
            entries.append(count_entries(train))
            n_train += train["subject_id"].n_unique()
            ids[shard] = events["subject_id"].unique().to_numpy()
        twice = subjects_in_two_shards(dataset, ids)
        if twice:
            raise InputError(str(twice[0]))
        vocabulary = fit_vocabulary(merge_entries(entries), n_train, spec, descriptions)
        vocabulary.write_parquet(folder / "vocabulary.parquet")

        encoder = Encoder.of(vocabulary, spec)
        outcomes: Counter[str] = Counter()
        parts, early, n_events = [], 0, 0
        for _, events in _split_shards(dataset, written_by, splits):
            encoded, counts = encoder.encode(events)
            outcomes.update(counts)
            n_events += events.height
            subjects, flat, before = _timelines_of(encoded, _clock(events, written_by.birth))
            parts.append((subjects, flat))
            early += before
        subjects, arrays = _by_subject_id(
            np.concatenate([s for s, _ in parts]),
            {k: np.concatenate([f[k] for _, f in parts]) for k in ("tokens", "seconds", "event", "lengths")},
        )
        width = np.uint16 if vocabulary.height < 2**16 else np.uint32
        np.save(folder / "tokens.npy", arrays["tokens"].astype(width))
        for name in ("seconds", "event", "offsets"):
            np.save(folder / f"{name}.npy", arrays[name])
        np.save(folder / "subjects.npy", subjects)
        n_all = sum(len(i) for i in ids.values())
        facts |= {
            "vocabulary_size": vocabulary.height,
            "subjects": len(subjects),
            "subjects_without_token": n_all - len(subjects),
            "tokens": len(arrays["tokens"]),
            "events": n_events,
            "events_by_outcome": {name: outcomes.get(name, 0) for name in OUTCOMES},
            "coverage": len(arrays["tokens"]) / n_events if n_events else 0.0,
            "events_before_origin": early,
        }
    return facts
