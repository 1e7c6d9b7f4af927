"""`ehrctx check`: what a MEDS data set holds, every rule it breaks, with file and row, and what is unusual in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.meds import SPLITS_FILE, Dataset, read_codes
from ehrctx.events.pieces import shard_pieces
from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.events.rows import Rows
from ehrctx.events.rules import MEDS, NO_EVENTS, subjects_in_two_shards
from ehrctx.events.shards import Events, examine
from ehrctx.events.splits import DEFAULT_PRIVACY, examine_splits, without_events
from ehrctx.events.violations import BrokenFile, Rule, Violation, of_file
from ehrctx.study import Privacy

PATTERNS_NAMED = 5


@dataclass
class _Totals:
    """What is added up over the pieces of a data set."""

    lengths: list[np.ndarray] = field(default_factory=list)  # events of each subject
    subjects: list[tuple[str, np.ndarray]] = field(default_factory=list)  # of each piece, with the name of its file
    codes: set[str] = field(default_factory=set)
    subjects_in_year: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    births_ignored: int = 0  # subjects

    def add(self, name: str, rows: Rows) -> None:
        frame = rows.frame().with_columns(pl.col("subject_id").cast(pl.Int64, strict=False))
        per_subject = frame.drop_nulls("subject_id").group_by("subject_id").len().sort("subject_id")
        self.subjects.append((name, per_subject["subject_id"].to_numpy()))
        self.lengths.append(per_subject["len"].to_numpy())
        self.codes.update(frame["code"].drop_nulls().unique().to_list())
        timed = frame.drop_nulls("time").group_by(pl.col("time").dt.year()).agg(pl.col("subject_id").n_unique())
        self.subjects_in_year.update(dict(timed.iter_rows()))
        self.events["all"] += frame.height
        self.events["static"] += frame["time"].null_count()
        self.events["numeric"] += frame["numeric_value"].count()
        self.events["text"] += frame["text_value"].count()

    def add_births(self, events: Events, birth: str) -> None:
        self.births_ignored += int((events.lives(birth).n_ignored > 0).sum())

    def summary(self, n_files: int, privacy: Privacy) -> dict[str, Any]:
        years = [year for year, n in self.subjects_in_year.items() if n >= privacy.minimum_count]
        n = np.concatenate(self.lengths) if self.lengths else np.zeros(0, dtype=np.int64)
        n_events = self.events["all"]
        share = {kind: self.events[kind] / n_events if n_events else 0.0 for kind in ("numeric", "text", "static")}
        return {
            "files": n_files,
            "subjects": int(sum(len(ids) for _, ids in self.subjects)),
            "events": n_events,
            "codes": len(self.codes),
            "first_year": min(years, default=None),
            "last_year": max(years, default=None),
            "events_per_subject": {
                "median": float(np.median(n)) if len(n) else 0.0,
                "p90": float(np.quantile(n, 0.9)) if len(n) else 0.0,
                "p99": float(np.quantile(n, 0.99)) if len(n) else 0.0,
            },
            "with_numeric_value": share["numeric"],
            "with_text_value": share["text"],
            "static": share["static"],
        }


def _check_shard(dataset: Dataset, shard: Path, profile: DatasetProfile, totals: _Totals) -> Iterator[Violation]:
    """Adds a shard to `totals`, one piece at a time, and yields what is wrong with it."""
    name, wrong_as_a_whole = dataset.name_of(shard), set()
    try:
        for piece in shard_pieces(dataset, shard):
            examined = examine(dataset, piece, profile, visits=True)
            if examined.rows is not None:
                totals.add(name, examined.rows)
            if examined.events is not None and not examined.violations:
                totals.add_births(examined.events, profile.birth)
            for violation in examined.violations:
                if violation not in wrong_as_a_whole:  # a wrong column is found in each piece
                    yield violation
                if not violation.n:
                    wrong_as_a_whole.add(violation)
    except BrokenFile as error:
        yield error.violation


def profile_patterns(profile: DatasetProfile) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every key of the profile that names codes, with its patterns."""
    yield "birth", (profile.birth,)
    for key in ("admission", "discharge", "discharged_dead", "icu_admission", "death", "date_only", "unit_in_code"):
        yield key, getattr(profile, key)
    for group, levels in profile.groups.items():
        for level, codes in levels.items():
            yield f"groups.{group}.{level}", codes


def unmatched_patterns(profile: DatasetProfile, codes: set[str]) -> list[str]:
    """A sentence for each key of the profile of which no event has a code, and one for single codes of the other keys:
    a shipped profile names those of several sites."""
    used = pl.DataFrame({"code": sorted(codes)}, schema={"code": pl.String})
    warnings, single = [], []
    for key, patterns in profile_patterns(profile):
        without = [p for p in patterns if not used.select(matches(pl.col("code"), (p,)).any()).item()]
        if without and len(without) == len(patterns):
            warnings.append(f"profile {profile.name!r}: no event has a code of `{key}` ({_named(without)}).")
        else:
            single += [f"{pattern!r} of `{key}`" for pattern in without]
    if single:
        shown = _named(single, str)
        warnings.append(f"profile {profile.name!r}: no event has {shown}; other codes of the same keys are there.")
    return warnings


def _named(patterns: Sequence[str], show: Callable[[str], str] = repr) -> str:
    more = f" and {len(patterns) - PATTERNS_NAMED:,} more" if len(patterns) > PATTERNS_NAMED else ""
    return f"{', '.join(map(show, patterns[:PATTERNS_NAMED]))}{more}"


def _check_splits(
    dataset: Dataset, file: Path | None, present: np.ndarray, privacy: Privacy
) -> tuple[list[Violation], str | None]:
    """What is wrong with the table of splits, in `file` or the data set's own, and a warning if it is unusual."""
    if file is not None and not file.is_file():
        raise InputError(f"no such file: {file}.")
    files = dataset.parts(SPLITS_FILE) if file is None else [file]
    names = [dataset.name_of(part) for part in files] if file is None else [str(file)]
    try:
        splits, violations = examine_splits(files, names)
    except BrokenFile as error:
        return [error.violation], None
    if violations:
        return violations, None
    n_without = len(np.setdiff1d(present, splits["subject_id"].to_numpy()))
    if n_without and file is not None:
        rule = Rule(f"{privacy.shown(n_without)} subjects with events have no split.", "Make the splits again.")
        violations = [of_file(str(file), rule)]
    return violations, without_events(splits, present, privacy)


def _check_codes(dataset: Dataset) -> list[Violation]:
    try:
        read_codes(dataset)
    except BrokenFile as error:
        return [error.violation]
    return []


def check(
    dataset: Dataset,
    profile: DatasetProfile | None = None,
    splits: Path | None = None,
    privacy: Privacy = DEFAULT_PRIVACY,
    warn: Callable[[str], object] = lambda sentence: None,
) -> tuple[dict[str, Any], list[Violation]]:
    """Aggregates of the whole data set, and all violations. Reads one piece at a time.

    With a `profile`, what it names is checked as well; `splits` is the file of another table than the data set's own.
    `warn` is called with a sentence on whatever is unusual, but can be read.
    The summary has: files, subjects, events, codes, first_year and last_year (in which at least as many subjects have
    events as `privacy` asks for), events_per_subject (median, p90, p99), with_numeric_value, with_text_value, static
    (shares of events).
    """
    violations: list[Violation] = []
    totals = _Totals()
    for shard in dataset.shards:
        violations += _check_shard(dataset, shard, profile or MEDS, totals)
    if not totals.events["all"] and not violations:
        violations.append(NO_EVENTS)
    violations += subjects_in_two_shards(totals.subjects)
    violations += _check_codes(dataset)
    present = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *(ids for _, ids in totals.subjects)]))
    wrong_splits, absent = _check_splits(dataset, splits, present, privacy)
    violations += wrong_splits
    is_readable = all(violation.n for violation in violations)  # else what was not read would count as absent
    if absent and is_readable:
        warn(absent)
    if totals.births_ignored:
        warn(
            f"{privacy.shown(totals.births_ignored)} subjects were born more than 136 years before their last event: "
            f"their birth, and so their age, counts as unknown."
        )
    if profile is not None and is_readable:
        for sentence in unmatched_patterns(profile, totals.codes):
            warn(sentence)
    return totals.summary(len(dataset.shards), privacy), violations
