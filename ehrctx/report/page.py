"""`ehrctx report`: one self-contained HTML page from the tidy tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined

from ehrctx import __version__
from ehrctx.artifacts import by_place, new_file, read_manifest, write_provenance
from ehrctx.errors import InputError
from ehrctx.probe.predict import COUNTS as BASELINE
from ehrctx.probe.score import ANY
from ehrctx.probe.statistics import FEW_POSITIVES
from ehrctx.probe.suppression import COUNTS
from ehrctx.report.few_shot import few_shot_sentence, score_by_k
from ehrctx.report.figures import (
    BASELINES,
    PROPERTY_NAMES,
    SCORE_NAMES,
    count,
    entry_name,
    image,
    perplexity_by_position,
    perplexity_of_repeats,
    score_by_context,
    score_by_quartile,
    task_name,
    validation_curves,
)
from ehrctx.report.published import model_rows, read_published, task_rows
from ehrctx.report.risks import (
    benefit_sentence,
    calibration_rows,
    calibration_sentence,
    decision_curves,
    judged_tasks,
    onset_rows,
    onset_sentence,
    reliability_curves,
    subgroup_scores,
    subgroup_sentence,
)
from ehrctx.report.sentences import (
    against_baseline,
    best_sentence,
    context_sentence,
    few_positives,
    is_sure,
    perplexity_sentence,
    quartile_sentence,
    repeats_sentence,
    signed,
)
from ehrctx.tasks.definition import MACRO, MACRO_MANY_POSITIVES

TABLES = (
    "scores", "differences", "wins", "few_shot", "calibration", "reliability", "net_benefit", "subgroups", "labels",
    "models", "curves", "strata", "perplexity",
)  # fmt: skip
_TYPES: dict[str, Any] = {
    **dict.fromkeys((*COUNTS, "n_flagged_subjects", "subjects", "k", "note", "left_out"), pl.String),
    **dict.fromkeys(("head", "reference", "reference_head", "recalibration", "level"), pl.String),
    **dict.fromkeys(("value", "lower", "upper", "median", "loss", "deviation", "predicted", "threshold"), pl.Float64),
    **dict.fromkeys(("p", "p_holm", "p_delong", "gain", "gain_lower", "gain_upper"), pl.Float64),
    **dict.fromkeys(("difference", "difference_lower", "difference_upper"), pl.Float64),
    **dict.fromkeys(("position_from", "position_to"), pl.Int64),  # a table of few subjects may have no row
    "sure": pl.Boolean,
}
SUMMARY = {"name", "subjects", "events", "codes", "events_per_subject", "with_numeric_value", "with_text_value"}
SHOWN_PROPERTIES = ("rr_1", "gap_sd", "n_tokens")


def require_tables(folder: Path) -> None:
    """Raises InputError, with the verb to run first, where a table is missing."""
    for name in TABLES:
        file = Path(folder) / f"{name}.csv"
        if not file.is_file():
            verb = "robustness" if name in ("strata", "perplexity") else "score"
            raise InputError(f"{file} is missing. Run `ehrctx {verb}` first.")


def read_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """The tables of `ehrctx score` and `ehrctx robustness`, by name; counts are text, since small ones are masked."""
    require_tables(folder)
    tables = {}
    for name in TABLES:
        file = Path(folder) / f"{name}.csv"
        # an interval that is not there is no limit, and so on no side of any number
        tables[name] = pl.read_csv(file, schema_overrides=_TYPES).with_columns(
            pl.col("^(.+_)?(lower|upper)$").fill_null(float("nan"))
        )
    # few_shot.csv has the others; scores of few labels are hidden
    scores = tables["scores"] = tables["scores"].filter(k="all").drop_nulls("value")
    tables["differences"] = tables["differences"].drop_nulls("value")
    tables["few_shot"] = tables["few_shot"].drop_nulls("value")
    sizes = dict(scores.select("task", "n").iter_rows())
    if sizes.get(MACRO) == sizes.get(MACRO_MANY_POSITIVES):  # the same tasks: said once
        for name in ("scores", "differences", "few_shot"):
            tables[name] = tables[name].filter(pl.col("task") != MACRO_MANY_POSITIVES)
    return tables


def _read_json(file: Path, verb: str, needed: set[str]) -> dict[str, Any]:
    if not Path(file).is_file():
        raise InputError(f"{file} is missing. Run `ehrctx {verb}` first.")
    try:
        found = json.loads(Path(file).read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not needed <= found.keys():
        raise InputError(f"{file} is not what `ehrctx {verb}` writes. Run it again.")
    return found


def _columns(scores: pl.DataFrame) -> list[tuple[str, str]]:
    """(model, head) of the score tables' columns: the models, then the heads on counts."""
    found = scores.select("model", "head").unique(maintain_order=True).rows()
    return [f for f in found if f[0] != BASELINE] + [(BASELINE, h) for h in BASELINES if (BASELINE, h) in found]


def _score_rows(tables: dict[str, pl.DataFrame], score: str) -> list[dict[str, Any]]:
    """One row per task, a cell per model and head; its verdict is how an AUROC surely differs from the strongest
    baseline's: "better", "worse" or nothing."""
    scores, differences = tables["scores"], tables["differences"]
    rows = []
    for (task,), own in scores.filter(pl.col("score") == score).group_by(["task"], maintain_order=True):
        cells: list[dict[str, Any] | None] = []
        for model, head in _columns(scores):
            cell = own.filter((pl.col("model") == model) & (pl.col("head") == head))
            if cell.is_empty():
                cells.append(None)
                continue
            against = against_baseline(scores, differences, str(task), model) if model != BASELINE else None
            few = few_positives(own["n_positive_subjects"][0])
            verdict = ""
            if score == "auroc" and against is not None and not few and is_sure(against):
                verdict = "better" if against["value"] > 0 else "worse"
            cells.append(cell.row(0, named=True) | {"verdict": verdict})
        counts = {c: own[c][0] for c in COUNTS}
        rows.append({"task": task_name(str(task)), "cells": cells} | counts)
    return rows


def _win_rows(wins: pl.DataFrame) -> list[dict[str, Any]]:
    """Of each model and head, the rate of wins against any other by AUROC, best first, with its `name`."""
    own = wins.filter(score="auroc", reference=ANY).sort("value", descending=True, nulls_last=True)
    return [row | {"name": entry_name(row["model"], row["head"])} for row in own.iter_rows(named=True)]


def _label_rows(labels: pl.DataFrame) -> list[dict[str, Any]]:
    """One row per task, its splits side by side."""
    rows = []
    for (task,), own in labels.group_by(["task"], maintain_order=True):
        texts = {name: next((text for text in own[name].to_list() if text), "") for name in ("note", "left_out")}
        rows.append({"task": task, "splits": own.to_dicts()} | texts)
    return rows


def task_sentences(tables: dict[str, pl.DataFrame]) -> dict[str, str]:
    """By task, the mean over tasks first: the best model, and what a longer context does."""
    scores, differences, models = tables["scores"], tables["differences"], tables["models"]
    found = {}
    for task in scores["task"].unique(maintain_order=True):
        parts = [best_sentence(scores, differences, task)]
        if not few_positives(scores.filter(pl.col("task") == task)["n_positive_subjects"][0]):
            parts.append(context_sentence(differences, models, task))
        found[task_name(task)] = "; ".join(part for part in parts if part)
    return found


def _risks(tables: dict[str, pl.DataFrame], level: float) -> dict[str, Any]:
    """What the page shows of calibration, net benefit, subgroups, few-shot learning and wins; `level` of intervals."""
    scores = tables["scores"]
    figures = {
        "reliability_figure": (reliability_curves, "reliability"),
        "decision_figure": (decision_curves, "net_benefit"),
        "subgroup_figure": (subgroup_scores, "subgroups"),
    }
    found: dict[str, Any] = {
        name: image(draw(tables[table], scores)) if judged_tasks(scores, tables[table]) else None
        for name, (draw, table) in figures.items()
    }
    return found | {
        "few_shot_figure": image(score_by_k(tables["few_shot"], scores)) if tables["few_shot"].height else None,
        "calibration": calibration_rows(tables["calibration"], scores),
        "calibration_sentence": calibration_sentence(tables["calibration"], scores),
        "benefit_sentence": benefit_sentence(tables["net_benefit"], scores),
        "subgroup_sentence": subgroup_sentence(tables["subgroups"], scores, level),
        "onsets": onset_rows(tables["subgroups"], scores),
        "onset_sentence": onset_sentence(tables["subgroups"], scores),
        "few_shot_sentence": few_shot_sentence(tables["few_shot"]),
        "wins": _win_rows(tables["wins"]),
    }


def _data_name(study: dict[str, Any], folder: str) -> str:
    """What the page calls the data; imported events lie in a folder whose name says nothing."""
    if study["simulate"]:
        return "simulated cohort with a planted cause"
    if source := study.get("source"):
        return f"data: {Path(source['folder']).name} ({source['format']})"
    return f"data: {folder}"


def write_report(folder: Path, timelines: Path, summary_file: Path, study: dict[str, Any], out: Path) -> None:
    """Writes the page `out` from the tables in `folder`, the timelines' manifest, the summary and the study.

    Beside it, page.json says what it was made from.
    """
    tables = read_tables(folder)
    scores, models, strata, perplexity = (tables[name] for name in ("scores", "models", "strata", "perplexity"))
    quartiles = [
        {
            "figure": image(score_by_quartile(strata, models, name)),
            "sentence": quartile_sentence(strata, name),
            "property": PROPERTY_NAMES[name][0],
        }
        for name in SHOWN_PROPERTIES
        if strata.height
    ]
    environment = Environment(
        loader=PackageLoader("ehrctx.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    published = read_published(study["published"]) if study.get("published") else None
    summary = _read_json(summary_file, "check --out", SUMMARY)
    page = environment.get_template("page.html.j2").render(
        **_risks(tables, study["statistics"]["level"]),
        published_tasks=task_rows(scores, published) if published is not None else [],
        published_models=model_rows(scores, models, published) if published is not None else [],
        columns_own=list(dict.fromkeys(model for model, _ in _columns(scores))),
        task_name=task_name,
        signed=signed,
        study=study,
        permuted=(study.get("labels") or {}).get("permuted"),
        version=__version__,
        summary=summary,
        data=_data_name(study, summary["name"]),
        timelines=read_manifest(timelines, "timelines")["facts"],
        conclusions=task_sentences(tables),
        count=count,
        score_names=SCORE_NAMES,
        few_positives=FEW_POSITIVES,
        columns=[entry_name(*entry) for entry in _columns(scores)],
        score_rows={score: _score_rows(tables, score) for score in SCORE_NAMES},
        labels=_label_rows(tables["labels"]),
        models=models.to_dicts(),
        auroc_figure=image(score_by_context(scores, models)) if scores.height else None,
        quartiles=quartiles,
        perplexity_figure=image(perplexity_by_position(perplexity, models)) if perplexity.height else None,
        perplexity_sentence=perplexity_sentence(perplexity, models),
        repeats_figure=image(perplexity_of_repeats(perplexity, models)) if perplexity.height else None,
        repeats_sentence=repeats_sentence(perplexity, models),
        validation_figure=image(validation_curves(tables["curves"])),
        inputs={
            name: fingerprint
            for file, verb in (("provenance.json", "score"), ("robustness.json", "robustness"))
            for name, fingerprint in _read_json(Path(folder) / file, verb, {"inputs"})["inputs"].items()
        },
        study_text=json.dumps(study, indent=1),
    )
    with new_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
    inputs = by_place([Path(folder) / "provenance.json", Path(folder) / "robustness.json", summary_file])
    write_provenance(out.with_name("page.json"), {"study": study}, {**inputs, "timelines": timelines}, [out])
