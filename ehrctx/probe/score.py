"""Scores of each model, paired differences of each pair, and how often each wins, with patient-level intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ehrctx.probe.by_task import Entry, TaskPredictions, count_labels
from ehrctx.probe.delong import delong, delong_p
from ehrctx.probe.statistics import (
    FEW_POSITIVES,
    LESS_IS_BETTER,
    SCORES,
    Draws,
    Intervals,
    holm,
    subjects_of_mean,
    variances,
)
from ehrctx.probe.suppression import COUNTS, are_scores_shown
from ehrctx.study import Privacy, Statistics
from ehrctx.tasks.definition import MACRO, MACRO_MANY_POSITIVES

ANY = "any other"  # the reference of a win rate against all others
_RARER = "_rarer"  # how many subjects have a label of the rarer class

_IDENTITY: dict[str, Any] = {**dict.fromkeys(("task", *Entry._fields), pl.String), "replicate": pl.Int64}
_REFERENCE = dict.fromkeys(("reference", "reference_head"), pl.String)
_ESTIMATE: dict[str, Any] = dict.fromkeys(("value", "lower", "upper"), pl.Float64)
_COUNTED = dict.fromkeys(COUNTS, pl.Int64)
_TESTS = {**dict.fromkeys(("p", "p_holm", "p_delong"), pl.Float64), "sure": pl.Boolean}
SCORE_TABLE: dict[str, Any] = {**_IDENTITY, "score": pl.String, **_ESTIMATE, **_COUNTED}
DIFFERENCE_TABLE: dict[str, Any] = {**_IDENTITY, **_REFERENCE, "score": pl.String, **_ESTIMATE, **_TESTS, **_COUNTED}
WIN_TABLE: dict[str, Any] = {
    **dict.fromkeys(("model", "head"), pl.String),
    **_REFERENCE,
    "score": pl.String,
    **_ESTIMATE,
    "n_tasks": pl.Int64,
}
FEW_SHOT_TABLE: dict[str, Any] = {
    **dict.fromkeys(("task", "model", "head", "k", "score"), pl.String),
    **_ESTIMATE,
    "deviation": pl.Float64,
    "n_draws": pl.Int64,
    **_COUNTED,
}


@dataclass(frozen=True)
class Scored:
    """One task, or the mean over several: each entry's scores (float64[3]) and those of each replicate
    (float64[replicates, 3]); the labels that they are of, and how many subjects of the rarer class these have."""

    found: dict[Entry, tuple[np.ndarray, np.ndarray]]
    counts: dict[str, int]
    n: int
    tasks: tuple[Scored, ...] = ()  # what a mean is over

    def rests_on(self, replicates_of: Callable[[Scored], np.ndarray]) -> np.ndarray:
        """On how many subjects a statistic rests for each score, float64[3]; `replicates_of` a task are its
        replicates there, float64[replicates, 3]."""
        if not self.tasks:
            return np.full(len(SCORES), float(self.n))
        return _subjects_over_tasks(
            [replicates_of(task) for task in self.tasks], [task.n for task in self.tasks], self.n
        )


def _subjects_over_tasks(
    replicates: Sequence[np.ndarray], n: Sequence[float | np.ndarray], of_all: float
) -> np.ndarray:
    """On how many subjects a mean over tasks rests, float64[3], from each task's replicates float64[replicates, 3] and
    subjects: not on more than `of_all` tasks together, as many are the same."""
    spread = np.stack([variances(of_task) for of_task in replicates])
    subjects = np.stack([np.broadcast_to(of_task, len(SCORES)) for of_task in n])
    return np.minimum(subjects_of_mean(spread, subjects), of_all)


@dataclass(frozen=True)
class ScoreTables:
    """SCORE_TABLE, DIFFERENCE_TABLE, WIN_TABLE and FEW_SHOT_TABLE."""

    scores: pl.DataFrame
    differences: pl.DataFrame
    wins: pl.DataFrame
    few_shot: pl.DataFrame


def _score(task: TaskPredictions, draws: Draws, intervals: Intervals) -> Scored:
    found = {entry: draws.scores(task.y, p, task.subject_ids) for entry, p in task.p.items()}
    return Scored(found, task.counts(), intervals.subjects(task.y, task.subject_ids))


def _mean(tasks: list[TaskPredictions], scored: list[Scored], entries: Iterable[Entry], intervals: Intervals) -> Scored:
    found = {}
    for entry in entries:
        points, replicates = zip(*(of_task.found[entry] for of_task in scored), strict=True)
        found[entry] = np.mean(points, axis=0), np.mean(replicates, axis=0)
    y, subject_ids = np.concatenate([t.y for t in tasks]), np.concatenate([t.subject_ids for t in tasks])
    return Scored(found, count_labels(y, subject_ids), intervals.subjects(y, subject_ids), tuple(scored))


def _is_shown(task: Scored, privacy: Privacy) -> bool:
    """Whether the tables show all of a task: its scores, and whether it has intervals."""
    return are_scores_shown(task.counts, privacy) and (task.n > 0 or privacy.minimum_count <= 1)


def _means(tasks: list[TaskPredictions], scored: list[Scored], intervals: Intervals) -> list[tuple[str, Scored]]:
    """For the entries of each k: the mean over the tasks that all of them predicted, and over those of these that have
    enough positive subjects; each only of two tasks or more."""
    by_k: dict[str, list[Entry]] = {}
    for entry in dict.fromkeys(entry for of_task in scored for entry in of_task.found):
        by_k.setdefault(entry.k, []).append(entry)
    means = []
    for entries in by_k.values():
        complete = [i for i, of_task in enumerate(scored) if of_task.found.keys() >= set(entries)]
        many = [i for i in complete if scored[i].counts["n_positive_subjects"] >= FEW_POSITIVES]
        for name, over in ((MACRO, complete), (MACRO_MANY_POSITIVES, many)):
            if len(over) > 1:
                means.append((name, _mean([tasks[i] for i in over], [scored[i] for i in over], entries, intervals)))
    return means


def _estimates(point: np.ndarray, replicates: np.ndarray, n: np.ndarray, intervals: Intervals) -> list[dict[str, Any]]:
    """One row per score, of `point` float64[3], `replicates` float64[replicates, 3] and how many subjects they rest on,
    `n` float64[3]."""
    rows = []
    for s, name in enumerate(SCORES):
        lower, upper = intervals.of(replicates[:, s], n[s])
        rows.append({"score": name, "value": float(point[s]), "lower": lower, "upper": upper})
    return rows


def _delong_p(task: TaskPredictions, entries: list[Entry]) -> dict[tuple[Entry, Entry], float]:
    auroc, covariance = delong(task.y, np.stack([task.p[entry] for entry in entries]), task.subject_ids)
    places = itertools.permutations(range(len(entries)), 2)
    return {(entries[a], entries[b]): delong_p(auroc, covariance, a, b) for a, b in places}


def _score_rows(name: str, scored: Scored, entry: Entry, intervals: Intervals) -> list[dict[str, Any]]:
    n = scored.rests_on(lambda of_task: of_task.found[entry][1])
    identity = {"task": name, **entry._asdict()}
    return [identity | row | scored.counts for row in _estimates(*scored.found[entry], n, intervals)]


def _difference_rows(
    name: str, scored: Scored, a: Entry, b: Entry, p_delong: float | None, intervals: Intervals
) -> list[dict[str, Any]]:
    point, replicates = (x - z for x, z in zip(scored.found[a], scored.found[b], strict=True))
    n = scored.rests_on(lambda of_task: of_task.found[a][1] - of_task.found[b][1])
    identity = {"task": name, **a._asdict(), "reference": b.model, "reference_head": b.head}
    rows = []
    for s, row in enumerate(_estimates(point, replicates, n, intervals)):
        tests = {
            "p": intervals.two_sided_p(replicates[:, s], n[s]),
            "p_delong": p_delong if row["score"] == "auroc" and scored.n else None,
        }
        rows.append(identity | row | tests | scored.counts | {_RARER: scored.n})
    return rows


def _differences(
    name: str, scored: Scored, delongs: Mapping[tuple[Entry, Entry], float], intervals: Intervals
) -> list[dict[str, Any]]:
    """Every ordered pair of the entries that were fitted on all labels."""
    pairs = itertools.permutations([entry for entry in scored.found if entry.k == "all"], 2)
    return [row for a, b in pairs for row in _difference_rows(name, scored, a, b, delongs.get((a, b)), intervals)]


def _with_holm(differences: pl.DataFrame, level: float) -> pl.DataFrame:
    """Adjusts the p values of one score. A family of tests is all tasks of one pair of models; for a mean over tasks,
    which is one test, all models against one reference."""
    is_mean = pl.col("task").is_in([MACRO, MACRO_MANY_POSITIVES])
    family = {
        "_pair": pl.when(is_mean).then(pl.lit("")).otherwise(pl.concat_str("model", "head", separator="\0")),
        "_mean": pl.when(is_mean).then(pl.col("task")).otherwise(pl.lit("")),
    }
    is_judged = pl.col(_RARER) >= FEW_POSITIVES
    adjusted = pl.col("p").map_batches(lambda p: pl.Series(holm(p.to_numpy())), return_dtype=pl.Float64)
    return (
        differences.with_columns(**family)
        .with_columns(p_holm=adjusted.over("score", "reference", "reference_head", *family))
        .with_columns(sure=pl.when(pl.col("p_holm").is_finite() & is_judged).then(pl.col("p_holm") < 1 - level))
        .drop(*family, _RARER)
    )


def _wins(scored: list[Scored], intervals: Intervals) -> list[dict[str, Any]]:
    """In which share of tasks each entry's score is better than another's (a tie counts half), over the tasks that both
    predicted; and the mean of that over all other models, of which the heads of one count as one."""
    entries = list(dict.fromkeys(entry for of_task in scored for entry in of_task.found if entry.k == "all"))
    sign = np.array([-1.0 if name in LESS_IS_BETTER else 1.0 for name in SCORES])
    rows: list[dict[str, Any]] = []
    for a in entries:
        against: dict[str, list[tuple[np.ndarray, ...]]] = {}
        n_shared = []
        for b in (entry for entry in entries if entry != a):
            both = [of_task for of_task in scored if a in of_task.found and b in of_task.found]
            if not both:
                continue
            of_points, of_replicates = (
                [(np.sign(sign * (t.found[a][part] - t.found[b][part])) + 1) / 2 for t in both] for part in (0, 1)
            )
            n = _subjects_over_tasks(of_replicates, [t.n for t in both], np.inf)
            rate = np.mean(of_points, axis=0), np.mean(of_replicates, axis=0), n
            against.setdefault(b.model, []).append(rate)
            n_shared.append(len(both))
            rows += _win_rows(a, b.model, b.head, rate, len(both), intervals)
        others = [heads for model, heads in against.items() if model != a.model] or list(against.values())
        if others:
            means = [np.mean([np.mean([rate[part] for rate in heads], 0) for heads in others], 0) for part in (0, 1)]
            least = np.min([rate[2] for heads in others for rate in heads], axis=0)
            rows += _win_rows(a, ANY, "", (*means, least), min(n_shared), intervals)
    return rows


def _win_rows(
    entry: Entry, reference: str, head: str, rate: tuple[np.ndarray, ...], n_tasks: int, intervals: Intervals
) -> list[dict[str, Any]]:
    """`rate` is (point, replicates, subjects), as `_estimates` takes them."""
    point, replicates, n = rate
    identity = {"model": entry.model, "head": entry.head, "reference": reference, "reference_head": head}
    return [identity | row | {"n_tasks": n_tasks} for row in _estimates(point, replicates, n, intervals)]


def _few_shot(name: str, scored: Scored, statistics: Statistics, intervals: Intervals) -> list[dict[str, Any]]:
    """Means over the draws of k labels."""
    groups: dict[tuple[str, str, str], list[Entry]] = {}
    for entry in scored.found:
        if entry.k != "all":
            groups.setdefault((entry.model, entry.head, entry.k), []).append(entry)
    return [row for entries in groups.values() for row in _few_shot_rows(name, scored, entries, statistics, intervals)]


def _few_shot_rows(
    name: str, scored: Scored, entries: list[Entry], statistics: Statistics, intervals: Intervals
) -> list[dict[str, Any]]:
    """Of the draws of one k. The interval draws both subjects and draws anew: each replicate takes the mean over all
    draws but one, with replacement, which varies as the mean over all does (Rao and Wu 1988)."""
    rng = np.random.default_rng(statistics.seed)  # the same draws for all models: paired
    chosen = rng.integers(0, len(entries), size=(statistics.replicates, max(1, len(entries) - 1)))

    def means(of_task: Scored) -> np.ndarray:
        replicates = np.stack([of_task.found[entry][1] for entry in entries], axis=1)
        return np.take_along_axis(replicates, chosen[:, :, None], axis=1).mean(axis=1)

    if scored.tasks:
        n = _subjects_over_tasks(
            [means(t) for t in scored.tasks], [_subjects_or_draws(t, entries) for t in scored.tasks], scored.n
        )
    else:
        n = _subjects_or_draws(scored, entries)
    points = np.stack([scored.found[entry][0] for entry in entries])
    deviations = points.std(axis=0, ddof=1) if len(entries) > 1 else np.full(len(SCORES), np.nan)
    model, head, k, _ = entries[0]
    identity = {"task": name, "model": model, "head": head, "k": k, "n_draws": len(entries)}
    return [
        identity | row | {"deviation": float(deviation)} | scored.counts
        for row, deviation in zip(_estimates(points.mean(axis=0), means(scored), n, intervals), deviations, strict=True)
    ]


def _subjects_or_draws(task: Scored, entries: list[Entry]) -> np.ndarray:
    """On how many subjects, or draws, a mean over draws rests: on each by what it adds to the variance; float64[3].

    A single draw rests on the subjects alone: what another would have given is not known."""
    if len(entries) == 1:
        return np.full(len(SCORES), float(task.n))
    points, replicates = (np.stack([task.found[entry][part] for entry in entries]) for part in (0, 1))
    spread = np.stack([variances(replicates.mean(axis=0)), points.var(axis=0, ddof=1) / len(entries)])
    return subjects_of_mean(spread, np.array([[task.n], [len(entries)]]))


def score_tables(
    tasks: Iterable[TaskPredictions], draws: Draws, statistics: Statistics, privacy: Privacy
) -> ScoreTables:
    """What the held-out labels say of each entry, each pair of entries, and each number of labels per class.

    The difference is the entry's score minus the reference's (for Brier, less is better); differences and wins are of
    heads fitted on all labels alone. The task "macro" is the unweighted mean over the tasks that every entry (of one k)
    predicted and of which `privacy` hides nothing, "macro_many_positives" that over those of them with at least
    `FEW_POSITIVES` positive subjects: their n and n_positive are sums over tasks, their subjects distinct. Wins, too,
    are of tasks of which nothing is hidden.

    `p` is the bootstrap's p value of a difference, `p_holm` the same for being one of many tests, `sure` whether it is
    under 1 - level (empty where fewer than `FEW_POSITIVES` subjects have a label of either class), `p_delong` the
    cross-check of an AUROC's `p` in closed form.
    """
    intervals = Intervals.under(privacy, statistics.level)
    of_tasks, scored = [], []
    differences: list[dict[str, Any]] = []
    for task in tasks:
        of_tasks.append(TaskPredictions(task.task, task.y, task.subject_ids, task.times, {}))  # the labels alone
        scored.append(_score(task, draws, intervals))
        entries = list(task.on_all_labels().p)
        delongs = _delong_p(task, entries) if len(entries) > 1 else {}
        differences += _differences(task.task, scored[-1], delongs, intervals)
    # what is hidden of a task would be the mean less all the others
    shown = [i for i, of_task in enumerate(scored) if _is_shown(of_task, privacy)]
    shown_scored = [scored[i] for i in shown]
    means = _means([of_tasks[i] for i in shown], shown_scored, intervals)
    named = [*means, *((task.task, of_task) for task, of_task in zip(of_tasks, scored, strict=True))]
    of_means = [row for name, mean in means for row in _differences(name, mean, {}, intervals)]
    rows = [
        row
        for name, of_task in named
        for entry in of_task.found
        for row in _score_rows(name, of_task, entry, intervals)
    ]
    few_shot = [row for name, of_task in named for row in _few_shot(name, of_task, statistics, intervals)]
    return ScoreTables(
        scores=pl.DataFrame(rows, schema=SCORE_TABLE),
        differences=_with_holm(
            pl.DataFrame(of_means + differences, schema=DIFFERENCE_TABLE | {_RARER: pl.Int64}), statistics.level
        ).select(list(DIFFERENCE_TABLE)),
        wins=pl.DataFrame(_wins(shown_scored, intervals), schema=WIN_TABLE),
        few_shot=pl.DataFrame(few_shot, schema=FEW_SHOT_TABLE),
    )
