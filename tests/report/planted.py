"""Tables as `ehrctx score` and `ehrctx robustness` write them, with planted numbers; what a drawn figure shows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ehrctx.artifacts import new_artifact
from ehrctx.probe.calibration import CALIBRATION_TABLE, RELIABILITY_TABLE
from ehrctx.probe.net_benefit import TABLE as NET_BENEFIT_TABLE
from ehrctx.probe.score import FEW_SHOT_TABLE, WIN_TABLE
from ehrctx.probe.subgroups import TABLE as SUBGROUP_TABLE
from ehrctx.study import ModelId
from ehrctx.timelines.store import KIND as TIMELINES

ARCHITECTURES = ("gpt", "llama", "mamba", "mamba2", "hyena")
HEADS = ("logistic_regression", "random_forest", "lightgbm")
STRATA = ("Q1", "Q2", "Q3", "Q4", "Q4-Q1")
FOURTEEN = (
    "guo_los", "guo_readmission", "guo_icu", "lab_thrombocytopenia", "lab_hyperkalemia", "lab_hypoglycemia",
    "lab_hyponatremia", "lab_anemia", "new_hypertension", "new_hyperlipidemia", "new_pancan", "new_celiac", "new_lupus",
    "new_acutemi",
)  # fmt: skip
COUNTED = {"n": "400", "n_positive": "40", "n_subjects": "300", "n_positive_subjects": "35"}
NAN = float("nan")


def models_of(*names: str) -> pl.DataFrame:
    """models.csv of these models."""
    rows = []
    for i, name in enumerate(names):
        identity = ModelId.parse(name)
        rows.append(
            {
                "model": name, "arch": identity.arch, "context": identity.context, "parameters": 800_000 + i,
                "tokens": 12_000, "seconds": 3.5, "tokens_per_second": 3_400.0, "real_token_share": 0.987,
                "subjects": "77", "passes": 2.0, "earlier_tokens": 0, "device": "cpu", "validation_loss": 4.5 + i / 100,
            }
        )  # fmt: skip
    return pl.DataFrame(rows)


def grid(architectures: Iterable[str], contexts: Iterable[int]) -> pl.DataFrame:
    """models.csv of every architecture at every context length."""
    contexts = list(contexts)
    return models_of(*[f"{arch}-tiny-{context}" for arch in architectures for context in contexts])


def score(
    task: str, model: str, value: float, lower: float | None = None, upper: float | None = None, **more: Any
) -> dict[str, Any]:
    """A row of scores.csv; `counts/<head>` stands for a head of the count baseline."""
    name, _, head = model.partition("/")
    limits = {"lower": value - 0.05 if lower is None else lower, "upper": value + 0.05 if upper is None else upper}
    identity = {"task": task, "model": name, "head": head or "logistic_regression", "k": "all", "replicate": 0}
    return identity | {"score": "auroc", "value": value} | limits | COUNTED | more


def difference(task: str, model: str, reference: str, lower: float, upper: float, **more: Any) -> dict[str, Any]:
    """A row of differences.csv; its value is the middle of the interval."""
    name, _, head = reference.partition("/")
    row = score(task, model, (lower + upper) / 2, lower, upper)
    tests = {"p": 0.01, "p_holm": 0.02, "p_delong": 0.01, "sure": lower > 0 or upper < 0}
    return row | {"reference": name, "reference_head": head or "logistic_regression"} | tests | more


def stratum(
    task: str, model: str, name: str, value: float, lower: float, upper: float, of: str = "rr_1", **more: Any
) -> dict[str, Any]:
    """A row of strata.csv."""
    row = score(task, model, value, lower, upper, score="brier")
    return {k: v for k, v in row.items() if k not in ("k", "replicate")} | {"property": of, "stratum": name} | more


def quarters(
    task: str, model: str, values: Sequence[float], interval: tuple[float, float], of: str = "rr_1", **more: Any
) -> list[dict[str, Any]]:
    """The rows of one model: four quartiles, each 0.01 around its value, and their difference with `interval`."""
    rows = [stratum(task, model, q, v, v - 0.01, v + 0.01, of, **more) for q, v in zip(STRATA, values, strict=False)]
    return [*rows, stratum(task, model, "Q4-Q1", values[3] - values[0], *interval, of, **more)]


def position(model: str, first: int, last: int, median: float, kind: str = "all", **more: Any) -> dict[str, Any]:
    """A row of perplexity.csv; the interval is a tenth of the median on each side."""
    counted = {"n": "400", "n_subjects": "300"}
    row = {"model": model, "position_from": first, "position_to": last, "kind": kind, "median": median}
    return row | {"lower": 0.9 * median, "upper": 1.1 * median} | counted | more


def curves_of(models: pl.DataFrame) -> pl.DataFrame:
    """curves.csv: two validations of each model, the later ones better, each model worse than the one before."""
    rows = [
        {"model": m["model"], "arch": m["arch"], "context": m["context"], "tokens": tokens, "loss": loss + i / 100}
        for i, m in enumerate(models.iter_rows(named=True))
        for tokens, loss in ((6_000, 5.0), (12_000, 4.5))
    ]
    return pl.DataFrame(rows)


def study_tables(models: pl.DataFrame, tasks: Sequence[str], **counts: str) -> dict[str, pl.DataFrame]:
    """All tables of a study in which every model and head predicted every task; values are distinct."""
    names = [*models["model"], *[f"counts/{head}" for head in HEADS]]
    counted = COUNTED | counts
    scores, differences, strata = [], [], []
    for t, task in enumerate(tasks):
        for m, name in enumerate(names):
            for s, of in enumerate(("auroc", "auprc", "brier")):
                value = round(0.6 + 0.017 * t % 0.1 + 0.003 * m + 0.1 * s, 3)
                scores.append(score(task, name, value, score=of) | counted)
                differences += [difference(task, name, o, -0.03, 0.05, score=of) | counted for o in names if o != name]
            for of in ("rr_1", "rr", "gap_sd", "gap_sd_with_birth", "n_tokens"):
                values = [0.1 + 0.002 * m + 0.01 * q for q in range(4)]
                strata += quarters(task, name, values, (-0.01, 0.07), of, **counted)
    labels = [
        {"task": t, "split": s, **counted, "note": "", "left_out": ""}
        for t in tasks
        if t != "macro"
        for s in ("train", "tuning", "held_out")
    ]
    bins = [(1, 1), (2, 3), (4, 15), (16, 63)]
    risks = {"wins": WIN_TABLE, "few_shot": FEW_SHOT_TABLE, "calibration": CALIBRATION_TABLE}
    risks |= {"reliability": RELIABILITY_TABLE, "net_benefit": NET_BENEFIT_TABLE, "subgroups": SUBGROUP_TABLE}
    return {name: pl.DataFrame(schema=schema) for name, schema in risks.items()} | {
        "scores": pl.DataFrame(scores),
        "differences": pl.DataFrame(differences),
        "labels": pl.DataFrame(labels),
        "models": models,
        "curves": curves_of(models),
        "strata": pl.DataFrame(strata),
        "perplexity": pl.DataFrame(
            [
                position(model, *span, 200 / (i + 1) + m, kind)
                for m, model in enumerate(models["model"])
                for i, span in enumerate(bins)
                for kind in ("all", "first", "repeat")
            ]
        ),
    }


def write_study(folder: Path, tables: dict[str, pl.DataFrame]) -> dict[str, Path]:
    """Writes the tables and what else the report reads; returns the arguments of `write_report` that are paths."""
    report, timelines = folder / "report", folder / "timelines"
    report.mkdir(parents=True)
    for name, table in tables.items():
        table.write_csv(report / f"{name}.csv", float_precision=6)
    (report / "provenance.json").write_text(json.dumps({"inputs": {"probes/gpt-tiny-64": "0123456789abcdef" * 4}}))
    (report / "robustness.json").write_text(json.dumps({"inputs": {"robustness/properties": "fedcba9876543210" * 4}}))
    facts = {
        "vocabulary_size": 4_096,
        "coverage": 0.876,
        "events_by_outcome": {"a code": 54_321, "dropped": 7, "never seen": 0},
    }
    with new_artifact(timelines, TIMELINES, {}, {}, facts):
        pass
    summary = {
        "name": "cohort", "subjects": 2_000, "events": 123_456, "codes": 321, "with_numeric_value": 0.25,
        "with_text_value": 0.0, "events_per_subject": {"median": 40, "p90": 120},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    return {"folder": report, "timelines": timelines, "summary_file": folder / "summary.json"}


def visible_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that a reader sees, and its box in pixels. The figure is drawn first."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    found = [t for t in figure.texts if t is not None] + [t for legend in figure.legends for t in legend.get_texts()]
    if figure._suptitle is not None:
        found.append(figure._suptitle)
    for axes in figure.axes:
        if not axes.axison:
            continue
        found += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            slack = 1e-9 * (high - low)  # ticks outside the view have labels, but are not drawn
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            found += [t.label1 for t in ticks if low - slack <= t.get_loc() <= high + slack and t.label1.get_visible()]
    unique = {id(t): t for t in found if t.get_visible() and t.get_text().strip()}
    return [(t.get_text(), t.get_window_extent(renderer)) for t in unique.values()]


def overlapping(texts: Sequence[tuple[str, Bbox]]) -> list[tuple[str, str]]:
    """Pairs of texts whose boxes share more than a pixel in each direction."""
    found = []
    for i, (one, a) in enumerate(texts):
        for other, b in texts[i + 1 :]:
            wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            if wide > 1 and high > 1:
                found.append((one, other))
    return found


def cut_off(figure: Figure, texts: Sequence[tuple[str, Bbox]]) -> list[str]:
    """Texts that leave the figure by more than a pixel."""
    edge = figure.bbox
    return [t for t, b in texts if b.x0 < -1 or b.y0 < -1 or b.x1 > edge.x1 + 1 or b.y1 > edge.y1 + 1]
