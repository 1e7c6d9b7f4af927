"""Sentences computed from the tidy tables: what the numbers say, and how sure they are."""

from __future__ import annotations

from typing import Any

import polars as pl

from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.probe.statistics import FEW_POSITIVES
from ehrctx.probe.suppression import lower_bound
from ehrctx.report.families import families
from ehrctx.report.figures import BASELINES, PROPERTY_NAMES, count, overall_task
from ehrctx.tasks.definition import MACRO

# Where "early" begins: the first tokens of a timeline are its birth and registration.
EARLY = 64


def signed(value: float) -> str:
    """`+0.123`, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def has_interval(row: dict[str, Any]) -> bool:
    """Whether the interval is neither hidden nor undefined: tables are read with NaN for both."""
    return bool(row["lower"] == row["lower"])


def estimate(row: dict[str, Any]) -> str:
    """`0.812 (0.790 to 0.834)`, without the interval where there is none."""
    return f"{row['value']:.3f}" + (f" ({row['lower']:.3f} to {row['upper']:.3f})" if has_interval(row) else "")


def _interval(row: dict[str, Any]) -> str:
    return f"interval {signed(row['lower'])} to {signed(row['upper'])}" if has_interval(row) else "no interval"


def excludes_zero(row: dict[str, Any]) -> bool:
    """Whether the interval is there (NaN is on no side of 0) and excludes 0."""
    return row["lower"] > 0 or row["upper"] < 0


def is_sure(row: dict[str, Any]) -> bool:
    """Whether a difference of two models is there, as a test says that allows for being one of many (`p_holm`)."""
    return row["sure"] is True


def few_positives(n_positive_subjects: str | int) -> bool:
    """Whether so few subjects, as tables hold the count, have a positive label that no verdict can be drawn."""
    return lower_bound(str(n_positive_subjects)) < FEW_POSITIVES


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def strongest_baseline(scores: pl.DataFrame, task: str) -> str | None:
    """The head on counts with the highest held-out AUROC: the comparison that favours the models least."""
    own = scores.filter((pl.col("task") == task) & (pl.col("score") == "auroc") & (pl.col("model") == BASELINE))
    return own.sort("value", descending=True)["head"][0] if own.height else None


def against_baseline(scores: pl.DataFrame, differences: pl.DataFrame, task: str, model: str) -> dict[str, Any] | None:
    """The paired AUROC difference of a model to the strongest head on counts."""
    own = differences.filter(
        (pl.col("task") == task)
        & (pl.col("score") == "auroc")
        & (pl.col("model") == model)
        & (pl.col("reference") == BASELINE)
        & (pl.col("reference_head") == (strongest_baseline(scores, task) or ""))
    )
    return own.row(0, named=True) if own.height else None


def _verdict(row: dict[str, Any]) -> str:
    if not has_interval(row):
        return "it has no interval"
    return f"{_interval(row)}, {'surely' if is_sure(row) else 'not surely'} different"


def lead_sentence(differences: pl.DataFrame, task: str, best: str) -> str | None:
    """Which other models may be as good as the `best` one, by paired AUROC differences; None if it is alone.

    Only a lead over all others is called sure. The best was chosen on the labels that it is compared on: of 8 equal
    models it is "surely" ahead of some other in half of all samples of 500 labels, and of all others in none.
    """
    others = differences.filter(
        (pl.col("task") == task)
        & (pl.col("score") == "auroc")
        & (pl.col("model") == best)
        & (pl.col("reference") != BASELINE)
    )
    n = others.height
    if n == 0:
        return None
    equals = sorted(row["reference"] for row in others.iter_rows(named=True) if not (is_sure(row) and row["value"] > 0))
    if not equals:
        return f"surely ahead of {'the other model' if n == 1 else f'all {n} other models'}"
    if len(equals) <= 3:
        return f"{listed(equals)} may be as good"
    return f"{'all' if len(equals) == n else f'{len(equals)} of the'} {n} other models may be as good"


def best_sentence(scores: pl.DataFrame, differences: pl.DataFrame, task: str) -> str | None:
    """The model with the highest AUROC on `task`; how it compares with the others and the strongest head on counts."""
    own = scores.filter((pl.col("task") == task) & (pl.col("score") == "auroc") & (pl.col("model") != BASELINE))
    if own.is_empty():
        return None
    best = own.sort("value", descending=True).row(0, named=True)
    text = f"best model {best['model']} at {estimate(best)}"
    if few_positives(best["n_positive_subjects"]):
        return f"{text}, with {count(best['n_positive_subjects'])} positive subjects: too few to judge"
    lead = lead_sentence(differences, task, best["model"])
    text += f"; {lead}" if lead else ""
    against = against_baseline(scores, differences, task, best["model"])
    if against is None:
        return text
    name = BASELINES[against["reference_head"]][2]
    return f"{text}; against {name} {signed(against['value'])}, {_verdict(against)}"


def context_sentence(differences: pl.DataFrame, models: pl.DataFrame, task: str, score: str = "auroc") -> str | None:
    """Whether the longest context beats the shortest on `task`, by family, with paired intervals."""
    verdicts: dict[str, list[str]] = {"helps": [], "hurts": [], "": []}
    for family in families(models):
        extremes = family.extremes()
        if extremes is None:
            continue
        (short, reference), (long, model) = extremes
        found = differences.filter(
            (pl.col("task") == task)
            & (pl.col("score") == score)
            & (pl.col("model") == model)
            & (pl.col("reference") == reference)
        )
        if found.is_empty():
            continue
        row = found.row(0, named=True)
        if few_positives(row["n_positive_subjects"]):
            return f"too few positive subjects ({count(row['n_positive_subjects'])}) to judge context lengths"
        more_is_better = score != "brier"
        verdict = ("helps" if (row["value"] > 0) == more_is_better else "hurts") if is_sure(row) else ""
        shown = f" ({long:,} against {short:,} tokens: {signed(row['value'])}, {_interval(row)})" if verdict else ""
        verdicts[verdict].append(family.name + shown)
    parts = [f"a longer context {verdict} {listed(of)}" for verdict, of in verdicts.items() if verdict and of]
    if verdicts[""]:
        parts.append(f"no difference by context can be told for {listed(verdicts[''])}")
    return "; ".join(parts) or None


def quartile_sentence(strata: pl.DataFrame, name: str, task: str | None = None) -> str | None:
    """How much worse the last quarter by the property `name` is than the first, for the model with the best scores, on
    one task or over all."""
    task = task or overall_task(strata)
    own = strata.filter((pl.col("property") == name) & (pl.col("task") == task) & (pl.col("model") != BASELINE))
    quarters = own.filter(pl.col("stratum").is_in(["Q1", "Q4"]))
    if quarters.is_empty():
        return None
    best = own.filter(pl.col("stratum") != "Q4-Q1").group_by("model").agg(pl.col("value").mean())
    model = best.sort("value", "model")["model"][0]
    of_model = quarters.filter(pl.col("model") == model).sort("stratum")["value"]
    differences = own.filter(pl.col("stratum") == "Q4-Q1")
    row = differences.filter(pl.col("model") == model).row(0, named=True)
    sure = sum(excludes_zero(r) for r in differences.iter_rows(named=True))
    of = "the mean over tasks" if task == MACRO else task
    _, low, high = PROPERTY_NAMES[name]
    return (
        f"The model with the lowest Brier score, {model}, has {of_model[0]:.3f} on the quarter of labels whose history "
        f"is {low} and {of_model[1]:.3f} on the quarter that is {high} ({signed(row['value'])}, "
        f"{_interval(row)}, {of}); the interval excludes 0 for {sure} of {differences.height} models"
    )


def difference_sentence(strata: pl.DataFrame, models: pl.DataFrame, name: str) -> str | None:
    """In how many tasks the last quarter is worse, or better, than the first, for the longest contexts."""
    compared = [family.longest for family in families(models)]
    own = strata.filter(
        (pl.col("property") == name)
        & (pl.col("stratum") == "Q4-Q1")
        & (pl.col("task") != MACRO)
        & pl.col("model").is_in(compared)
    )
    if own.is_empty():
        return None
    _, low, high = PROPERTY_NAMES[name]
    parts = []
    for model in compared:
        of_model = own.filter(pl.col("model") == model).iter_rows(named=True)
        rows = [row for row in of_model if not few_positives(row["n_positive_subjects"])]
        worse, better = sum(row["lower"] > 0 for row in rows), sum(row["upper"] < 0 for row in rows)
        parts.append(f"{model} is worse in {worse} and better in {better} of {len(rows)} tasks")
    judged = f"by intervals that exclude 0, in tasks with at least {FEW_POSITIVES} positive subjects in these quarters"
    return f"On the quarter that is {high}, against the one that is {low} ({judged}): {'; '.join(parts)}"


def loss_sentence(curves: pl.DataFrame) -> str:
    """Which model predicts the next token best at the end of its training, and which worst."""
    last = curves.sort("tokens").group_by("model", maintain_order=True).last().sort("loss", "model")
    best, worst = last.row(0, named=True), last.row(-1, named=True)
    return (
        f"The lowest validation loss is {best['loss']:.3f} nats per token ({best['model']}), the highest "
        f"{worst['loss']:.3f} ({worst['model']})"
    )


def _perplexity(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _positions(row: dict[str, Any]) -> str:
    first, last = f"{row['position_from']:,}", f"{row['position_to']:,}"
    return first if first == last else f"{first} to {last}"


def perplexity_sentence(perplexity: pl.DataFrame, models: pl.DataFrame) -> str | None:
    """Early against late perplexity, for the longest context of each family."""
    parts = []
    for model in (family.longest for family in families(models)):
        own = perplexity.filter((pl.col("model") == model) & (pl.col("kind") == "all")).sort("position_from")
        if own.height < 2:
            continue
        later = own.filter(pl.col("position_from") >= EARLY)
        first, last = (later if later.height > 1 else own).row(0, named=True), own.row(-1, named=True)
        overlap = last["lower"] <= first["upper"] and last["upper"] >= first["lower"]
        parts.append(
            f"{model} from {_perplexity(first['median'])} at tokens {_positions(first)} to "
            f"{_perplexity(last['median'])} at tokens {_positions(last)}{' (intervals overlap)' if overlap else ''}"
        )
    return f"Median perplexity goes: {'; '.join(parts)}" if parts else None


def repeats_sentence(perplexity: pl.DataFrame, models: pl.DataFrame) -> str | None:
    """Perplexity of tokens new to their timeline against repeated ones, at the last positions that hold both."""
    parts = []
    for model in (family.longest for family in families(models)):
        own = perplexity.filter(pl.col("model") == model)
        both = own.filter(pl.col("kind") == "first").join(
            own.filter(pl.col("kind") == "repeat"), on=["position_from", "position_to"], suffix="_repeat"
        )
        if both.height:
            row = both.sort("position_from").row(-1, named=True)
            compared = f"{_perplexity(row['median'])} against {_perplexity(row['median_repeat'])}"
            parts.append(f"{model} {compared} (tokens {_positions(row)})")
    return f"Median perplexity of new against repeated tokens: {'; '.join(parts)}" if parts else None
