"""Published figures beside a study's own: the rows of the paper's tables, where the tasks and the models are the same.

The figures are in `publications/*.csv`, as tidy as our own tables: task, model, score, value, reference, sure (of a
difference: whether its interval excludes 0), property and stratum (of a Brier score by quarter), source. `counts` is
the best head on counts of each task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.report.families import families
from ehrctx.tasks.definition import MACRO

FOLDER = Path(__file__).parent / "publications"
REFERENCE = "clmbr-t-base"
LONGEST = "mamba-paper-16384"  # the study's headline
_TEXT = dict.fromkeys(("task", "model", "score", "reference", "property", "stratum", "source"), pl.String)
TABLE: dict[str, Any] = _TEXT | {"value": pl.Float64, "sure": pl.Boolean}


def read_published(name: str) -> pl.DataFrame:
    """TABLE of one publication (`context_clues`)."""
    return pl.read_csv(FOLDER / f"{name}.csv", schema_overrides=TABLE)


def _one(figures: pl.DataFrame, **values: str) -> dict[str, Any] | None:
    found = figures.filter(**values)
    return found.row(0, named=True) if found.height else None


def task_rows(scores: pl.DataFrame, published: pl.DataFrame) -> list[dict[str, Any]]:
    """One row for each task that both have, the mean over tasks first.

    `n`, `n_positive`, `reference`, `counts`: published (None where not); `difference`: a row of `published`, or None;
    `own`: the study's AUROC rows by model, of `counts` that of the best head. `scores` is scores.csv.
    """
    aurocs = scores.filter(pl.col("score") == "auroc", pl.col("k") == "all")
    figures = published.filter(pl.col("property").is_null())
    rows = []
    for task in [t for t in aurocs["task"].unique(maintain_order=True) if t in set(figures["task"])]:
        of_task = figures.filter(task=task)
        own = aurocs.filter(task=task).sort("value", descending=True, nulls_last=True)
        best_first = own.unique("model", keep="first", maintain_order=True)
        without = {
            name: found["value"] if (found := _one(of_task, **where)) else None
            for name, where in {
                "n": {"score": "n"},
                "n_positive": {"score": "n_positive"},
                "reference": {"model": REFERENCE, "score": "auroc"},
                "counts": {"model": BASELINE, "score": "auroc"},
            }.items()
        }
        differences = of_task.filter(pl.col("reference").is_not_null())
        rows.append(
            {"task": task, **without}
            | {"difference": _one(differences, model=LONGEST, reference=REFERENCE)}
            | {"own": {row["model"]: row for row in best_first.iter_rows(named=True)}}
        )
    return rows


def model_rows(scores: pl.DataFrame, models: pl.DataFrame, published: pl.DataFrame) -> list[dict[str, Any]]:
    """One row for each published model of the mean over tasks: `arch`, `context`, `published`, and `own`, the study's
    AUROC row of that architecture and context length (None if it has none; of several sizes the largest)."""
    own = {(family.arch, context): family.at(context) for family in families(models) for context in family.contexts}
    means = {
        row["model"]: row
        for row in scores.filter(pl.col("task") == MACRO, score="auroc", k="all").iter_rows(named=True)
    }
    rows = []
    figures = published.filter(pl.col("property").is_null(), task=MACRO, score="auroc")
    for figure in figures.iter_rows(named=True):
        arch, _, context = figure["model"].partition("-paper-")
        if context:
            mine = means.get(own.get((arch, int(context)), ""))
            rows.append({"arch": arch, "context": int(context), "published": figure["value"], "own": mine})
    return rows
