"""Sentences computed from the tidy tables: what the numbers say, and how sure they are."""

from __future__ import annotations

import polars as pl

from ehrctx.report.figures import BASELINE

# With fewer positive labels a percentile bootstrap covers clearly less than it says: no verdict is drawn from it.
FEW_POSITIVES = 20


def _number(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def few_positives(n_positive: str | int) -> bool:
    """Whether a count, as tables hold it ('<10' where masked), is too small for a verdict."""
    text = str(n_positive)
    return text.startswith("<") or int(text) < FEW_POSITIVES


def context_sentence(differences: pl.DataFrame, models: pl.DataFrame, task: str, score: str = "auroc") -> list[str]:
    """For each architecture, whether the longest context beats the shortest on `task`, with the paired interval."""
    found = []
    for arch in models["arch"].unique(maintain_order=True):
        own = models.filter(pl.col("arch") == arch).sort("context")
        short, long = own.row(0, named=True), own.row(-1, named=True)
        if short["context"] == long["context"]:
            continue
        row = differences.filter(
            (pl.col("task") == task)
            & (pl.col("score") == score)
            & (pl.col("model") == long["model"])
            & (pl.col("reference") == short["model"])
        )
        if row.is_empty():
            continue
        d = row.row(0, named=True)
        if few_positives(d["n_positive"]):
            verdict = f"too few positive labels ({d['n_positive']}) to judge"
        elif d["lower"] > 0:
            verdict = "a longer context helps"
        elif d["upper"] < 0:
            verdict = "a longer context hurts"
        else:
            verdict = "no difference can be told"
        found.append(
            f"{arch}: {verdict} ({long['context']:,} against {short['context']:,} tokens: "
            f"{_number(d['value'])} AUROC, interval {_number(d['lower'])} to {_number(d['upper'])})"
        )
    return found


def best_sentence(scores: pl.DataFrame, differences: pl.DataFrame, task: str) -> str | None:
    """The model with the highest AUROC on `task`, and how it compares with the count baseline."""
    own = scores.filter((pl.col("task") == task) & (pl.col("score") == "auroc") & (pl.col("model") != BASELINE))
    if own.is_empty():
        return None
    best = own.sort("value", descending=True).row(0, named=True)
    text = f"best model {best['model']} at {best['value']:.3f} ({best['lower']:.3f} to {best['upper']:.3f})"
    if few_positives(best["n_positive"]):
        return f"{text}, on {best['n_positive']} positive labels: too few to judge"
    against = differences.filter(
        (pl.col("task") == task)
        & (pl.col("score") == "auroc")
        & (pl.col("model") == best["model"])
        & (pl.col("reference") == BASELINE)
    )
    if against.is_empty():
        return text
    d = against.row(0, named=True)
    sure = "its interval excludes 0" if d["lower"] > 0 or d["upper"] < 0 else "its interval includes 0"
    return f"{text}; against counts {_number(d['value'])}, {sure}"
