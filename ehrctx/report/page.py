"""`ehrctx report`: one self-contained HTML page from the tidy tables."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from ehrctx import __version__
from ehrctx.artifacts import new_file, read_manifest
from ehrctx.errors import InputError
from ehrctx.pretrain.trained import trained_model
from ehrctx.report.figures import BASELINE, SCORE_NAMES, score_by_context, validation_curves
from ehrctx.report.sentences import FEW_POSITIVES, best_sentence, context_sentence, few_positives

COUNTS = ("n", "n_positive", "n_subjects", "subjects")


def read_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """The tables that `ehrctx score` wrote, by name; counts are text, since small ones are masked."""
    tables = {}
    for name in ("scores", "differences", "labels", "models"):
        file = Path(folder) / f"{name}.csv"
        if not file.is_file():
            raise InputError(f"{file} is missing. Run `ehrctx score` first.")
        types: dict[str, Any] = dict.fromkeys((*COUNTS, "k", "note"), pl.String)
        types |= dict.fromkeys(("value", "lower", "upper"), pl.Float64)
        tables[name] = pl.read_csv(file, schema_overrides=types)
    return tables


def _image(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="svg")
    plt.close(figure)
    return base64.b64encode(stream.getvalue()).decode()


def _validation_curves(models: list[Path]) -> pl.DataFrame:
    rows = []
    for folder in models:
        model, facts = trained_model(folder)
        rows += [
            {
                "model": model,
                "arch": facts["arch"],
                "context": facts["context"],
                "tokens": t,
                "loss": loss,
            }
            for t, loss in facts["validation"]
        ]
    return pl.DataFrame(rows)


def _score_rows(tables: dict[str, pl.DataFrame]) -> list[dict[str, Any]]:
    """One row per task and model, the three scores side by side, and the difference to the count baseline."""
    scores, differences = tables["scores"], tables["differences"]
    rows = []
    for (task, model), own in scores.group_by(["task", "model"], maintain_order=True):
        row: dict[str, Any] = {"task": task, "model": model} | {c: own[c][0] for c in ("n", "n_positive", "n_subjects")}
        row["scores"] = [own.filter(pl.col("score") == s).row(0, named=True) for s in SCORE_NAMES]
        against = differences.filter(
            (pl.col("task") == task)
            & (pl.col("model") == model)
            & (pl.col("reference") == BASELINE)
            & (pl.col("score") == "auroc")
        )
        row["difference"] = against.row(0, named=True) if against.height else None
        row["few"] = few_positives(row["n_positive"])
        rows.append(row)
    return rows


def write_report(
    folder: Path, models: list[Path], timelines: Path, summary_file: Path, study: dict[str, Any], out: Path
) -> None:
    """Writes the page `out` from the tables in `folder`, the manifests of models and timelines, and the summary."""
    tables = read_tables(folder)
    tasks = tables["labels"]["task"].unique(maintain_order=True).to_list()
    conclusions = {
        task: [
            *([s] if (s := best_sentence(tables["scores"], tables["differences"], task)) else []),
            *context_sentence(tables["differences"], tables["models"], task),
        ]
        for task in tasks
    }
    notes = dict(tables["labels"].select("task", pl.col("note").fill_null("")).unique().iter_rows())
    environment = Environment(
        loader=PackageLoader("ehrctx.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        study=study,
        version=__version__,
        summary=json.loads(Path(summary_file).read_text()),
        timelines=read_manifest(timelines, "timelines")["facts"],
        conclusions=conclusions,
        notes=notes,
        score_names=SCORE_NAMES,
        few_positives=FEW_POSITIVES,
        score_rows=_score_rows(tables),
        labels=tables["labels"].to_dicts(),
        models=tables["models"].to_dicts(),
        auroc_figure=_image(score_by_context(tables["scores"], tables["models"])) if tables["scores"].height else None,
        validation_figure=_image(validation_curves(_validation_curves(models))),
        provenance=json.loads((Path(folder) / "provenance.json").read_text()),
        study_text=json.dumps(study, indent=1),
    )
    with new_file(out) as partial:
        partial.write_text(page, encoding="utf-8")
