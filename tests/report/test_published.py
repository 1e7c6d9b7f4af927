"""The shipped figures against what the paper says of itself, and their places beside a study's own."""

from __future__ import annotations

import polars as pl
import pytest

from ehrctx.report.published import LONGEST, REFERENCE, model_rows, read_published, task_rows
from ehrctx.tasks.definition import MACRO

TASKS = 14
FIGURES = read_published("context_clues")


def score(task: str, model: str, value: float, head: str = "logistic_regression", k: str = "all") -> dict:
    return {"task": task, "model": model, "head": head, "k": k, "score": "auroc", "value": value}


def test_the_figures_agree_with_each_other():
    """Means that the paper gives are those of its rows, up to the rounding of both."""
    of_tasks = FIGURES.filter((pl.col("task") != MACRO) & pl.col("property").is_null())
    aurocs = of_tasks.filter(score="auroc")
    means = {}
    for model in (REFERENCE, "counts"):
        own = aurocs.filter(pl.col("reference").is_null(), model=model)
        assert own.height == TASKS
        means[model] = own["value"].mean()
    macro = FIGURES.filter(pl.col("reference").is_null(), task=MACRO, score="auroc")
    published = dict(macro.select("model", "value").iter_rows())
    assert means[REFERENCE] == pytest.approx(published[REFERENCE], abs=0.001)
    # rows have the best head of each task, the mean is that of one head
    assert "counts" not in published
    assert means["counts"] > published["counts (GBM)"]
    differences = aurocs.filter(model=LONGEST)
    assert differences.height == TASKS
    assert differences["value"].mean() == pytest.approx(published[LONGEST] - published[REFERENCE], abs=0.002)
    assert differences["sure"].sum() == 6
    assert set(FIGURES["source"]) == {"arXiv 2412.16178", "arXiv 2307.02028"}


def test_every_published_task_is_shipped(repository):
    shipped = {file.stem for file in (repository / "ehrctx" / "tasks" / "definitions").glob("*.yaml")}
    assert set(FIGURES["task"]) - {MACRO} == shipped


def test_rows_of_tasks_stand_beside_the_published():
    scores = pl.DataFrame(
        [
            score(MACRO, "mamba-small-1024", 0.7),
            score("guo_icu", "mamba-small-1024", 0.8),
            score("guo_icu", "counts", 0.6, head="lightgbm"),
            score("guo_icu", "counts", 0.65, head="random_forest"),
            score("guo_icu", "mamba-small-1024", 0.1, k="8"),
            score("my_task", "mamba-small-1024", 0.9),
        ]
    )
    mean, icu = task_rows(scores, FIGURES)
    assert (mean["task"], mean["reference"], mean["n"], mean["difference"]) == (MACRO, 0.7765, None, None)
    assert (icu["task"], icu["n"], icu["n_positive"], icu["reference"], icu["counts"]) == (
        "guo_icu", 2037, 85, 0.848, 0.799,
    )  # fmt: skip
    assert (icu["difference"]["value"], icu["difference"]["sure"]) == (0.007, False)
    assert {model: row["value"] for model, row in icu["own"].items()} == {"mamba-small-1024": 0.8, "counts": 0.65}
    assert icu["own"]["counts"]["head"] == "random_forest"


def test_rows_of_models_meet_those_of_their_context():
    models = pl.DataFrame({"model": ["mamba-tiny-1024", "mamba-small-1024", "gpt-tiny-64"]})
    scores = pl.DataFrame([score(MACRO, "mamba-small-1024", 0.7), score(MACRO, "gpt-tiny-64", 0.6)])
    rows = model_rows(scores, models, FIGURES)
    assert len(rows) == 16
    assert {(r["arch"], r["context"]): r["published"] for r in rows}["mamba", 16384] == 0.808
    beside = [(r["arch"], r["context"], r["own"]["model"]) for r in rows if r["own"]]
    assert beside == [("mamba", 1024, "mamba-small-1024")]
