"""`ehrctx score`: the predictions of all models -> the tidy tables of a study, without small counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from ehrctx.artifacts import by_place, require_same_input, write_provenance, write_table
from ehrctx.errors import InputError, refuse_repeated
from ehrctx.events.meds import SPLITS
from ehrctx.events.splits import read_splits
from ehrctx.pretrain.trained import final_validation, trained_model
from ehrctx.probe.by_task import TaskPredictions, by_task, count_labels, evaluated_subjects
from ehrctx.probe.calibration import calibration_tables
from ehrctx.probe.groups import KIND as GROUPS
from ehrctx.probe.groups import read_groups
from ehrctx.probe.net_benefit import SMALLEST, net_benefit_table
from ehrctx.probe.predict import KIND as PREDICTIONS
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.score import score_tables
from ehrctx.probe.statistics import Draws, Intervals
from ehrctx.probe.subgroups import ESTIMATES, subgroup_table
from ehrctx.probe.suppression import COUNTS, SCORED, Cells, Counts, mask, of_partition, suppress
from ehrctx.study import Privacy, Statistics
from ehrctx.tasks.definition import MACRO, MACRO_MANY_POSITIVES
from ehrctx.tasks.history import read_history
from ehrctx.tasks.label_sets import read_labels, read_left_out

FLAGGED = "n_flagged_subjects"


def label_table(
    labels: dict[str, pl.DataFrame], splits: pl.DataFrame, estimable: dict[str, str | None]
) -> pl.DataFrame:
    """(task, split, COUNTS, note); the note says why a task has no scores."""
    rows = []
    for task, frame in labels.items():
        placed = frame.join(splits, on="subject_id", how="left")
        for split in SPLITS:
            part = placed.filter(pl.col("split") == split)
            counts = count_labels(part["boolean_value"].to_numpy(), part["subject_id"].to_numpy())
            rows.append({"task": task, "split": split, **counts, "note": estimable.get(task) or ""})
    return pl.DataFrame(rows)


def left_out_text(left_out: Mapping[str, int], privacy: Privacy) -> str:
    """How many labels of one task were left out for which reason, in words; small counts are masked."""
    least = privacy.minimum_count
    return "; ".join(f"{f'{n:,}' if n >= least else f'<{least}'} {reason}" for reason, n in left_out.items() if n)


def model_tables(folders: Sequence[Path]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per trained model (architecture, context, parameters, tokens, speed …), and its validation losses.

    The second table is (model, arch, context, tokens, loss), the loss in nats per token.
    """
    columns = (
        "arch",
        "context",
        "parameters",
        "tokens",
        "seconds",
        "tokens_per_second",
        "real_token_share",
        "subjects",
    )
    rows, curves = [], []
    for folder in folders:
        model, facts = trained_model(folder)
        rows.append(
            {"model": model}
            | {c: facts[c] for c in (*columns, "passes", "device")}
            | {"earlier_tokens": facts.get("start", {}).get("earlier_tokens", 0)}
            | {"validation_loss": validation[1] if (validation := final_validation(facts)) else None}
        )
        identity = {"model": model, "arch": facts["arch"], "context": facts["context"]}
        curves += [identity | {"tokens": tokens, "loss": loss} for tokens, loss in facts["validation"]]
    return pl.DataFrame(rows), pl.DataFrame(curves)


def _refuse_other_splits(predictions: Sequence[pl.LazyFrame], splits: pl.DataFrame, splits_file: Path) -> None:
    made = pl.concat([frame.select("subject_id", "split").unique() for frame in predictions]).unique().collect()
    joined = made.join(splits.rename({"split": "given"}), on="subject_id", how="left")
    other = joined.filter(pl.col("split").ne_missing(pl.col("given"))).height
    if other:
        raise InputError(
            f"{splits_file} puts {other:,} subjects into another split than the predictions do. "
            f"Give the splits that the timelines were made with."
        )


def _hide_parts_of_a_total(
    privacy: Privacy, keys: Sequence[tuple], counts: Sequence[Counts], shown: Sequence[Cells]
) -> list[Cells]:
    """`keys` end with the part, which must not follow from the other parts and the total."""
    found = list(shown)
    wholes: dict[tuple, list[int]] = {}
    for i, (*whole, _) in enumerate(keys):
        wholes.setdefault(tuple(whole), []).append(i)
    for parts in wholes.values():
        hidden = of_partition([counts[i] for i in parts], [found[i] for i in parts], privacy)
        for i, cells in zip(parts, hidden, strict=True):
            found[i] = cells
    return found


def _is_hidden(counts: Sequence[str]) -> pl.Expr:
    return pl.any_horizontal(~pl.col(count).str.contains(r"^\d+$") for count in counts)


def _without_values(frame: pl.DataFrame, values: Sequence[str]) -> pl.DataFrame:
    """`values` emptied where a count is hidden: a share of a known number would tell it."""
    return frame.with_columns(pl.when(~_is_hidden(COUNTS)).then(pl.col(values)))


def _without_scores_of_few(frame: pl.DataFrame, values: Sequence[str] = ("value", "lower", "upper")) -> pl.DataFrame:
    """Scores emptied where hardly any label is positive, or negative. A mean is over tasks whose scores are shown."""
    is_mean = pl.col("task").is_in([MACRO, MACRO_MANY_POSITIVES])
    return frame.with_columns(pl.when(is_mean | ~_is_hidden(SCORED)).then(pl.col(values)))


def _without_errors_of_hidden_bins(calibration: pl.DataFrame, reliability: pl.DataFrame) -> pl.DataFrame:
    """The calibration error is a sum over bins, which a hidden one could be worked out from."""
    who = ["task", "model", "head", "recalibration"]
    hidden = reliability.filter(_is_hidden(COUNTS)).select(who).unique().with_columns(_hidden=pl.lit(True))
    marked = calibration.join(hidden, on=who, how="left", maintain_order="left")
    gives_away = (pl.col("measure") == "ece") & pl.col("_hidden").fill_null(False)
    return marked.with_columns(pl.when(~gives_away).then(pl.col("value", "lower", "upper"))).drop("_hidden")


def _hide_few_flagged(table: pl.DataFrame, privacy: Privacy) -> pl.DataFrame:
    """Net benefits from which few people could be counted are left empty: where hardly anybody is flagged, or is not,
    or hardly any label is a true or a false positive or negative; and the number of the flagged with them."""
    few = pl.any_horizontal(
        (pl.col("n_subjects") - pl.col(FLAGGED)).is_between(1, privacy.minimum_count - 1),
        *(pl.col(count).is_between(1, privacy.minimum_count - 1) for count in (FLAGGED, "n_positive", SMALLEST)),
    )
    values = [name for name, dtype in table.schema.items() if dtype == pl.Float64 and name != "threshold"]
    return table.with_columns(
        pl.when(~few).then(pl.col(values)),
        pl.when(few).then(pl.lit("")).otherwise(mask(pl.col(FLAGGED), privacy)).alias(FLAGGED),
    ).drop(SMALLEST)


def evaluate(
    predictions: Sequence[pl.LazyFrame],
    groups: pl.DataFrame,
    history: pl.DataFrame,
    statistics: Statistics,
    privacy: Privacy,
) -> dict[str, pl.DataFrame]:
    """All tables that rest on predictions, by name, without small counts and what would tell them."""
    draws = Draws.of(evaluated_subjects(predictions), statistics)
    tables = score_tables(by_task(predictions), draws, statistics, privacy)
    intervals = Intervals.under(privacy, statistics.level)
    on_all_labels = [frame.filter(k="all") for frame in predictions]  # the few-shot ones are many times as many
    held_out = list(by_task(on_all_labels))
    tuning = {task.task: task for task in by_task(on_all_labels, "tuning")}
    pairs: list[tuple[TaskPredictions, TaskPredictions | None]] = [(task, tuning.get(task.task)) for task in held_out]
    calibration, reliability = calibration_tables(pairs, draws, intervals)
    net_benefit = net_benefit_table(pairs, draws, statistics.thresholds, intervals)
    subgroups = subgroup_table(held_out, groups, history, draws, intervals)
    parts = partial(_hide_parts_of_a_total, privacy)
    bins = suppress(reliability, ["task", "model", "head", "recalibration", "bin"], privacy, parts)
    return {
        "scores": _without_scores_of_few(suppress(tables.scores, ["task", "k"], privacy)),
        "differences": _without_scores_of_few(
            suppress(tables.differences, ["task"], privacy),
            ("value", "lower", "upper", "p", "p_holm", "p_delong", "sure"),
        ),
        "wins": tables.wins,
        "few_shot": _without_scores_of_few(suppress(tables.few_shot, ["task", "k"], privacy)),
        "calibration": _without_errors_of_hidden_bins(
            _without_scores_of_few(suppress(calibration, ["task"], privacy)), bins
        ),
        "reliability": _without_values(bins, ("predicted", "value", "lower", "upper")),
        "net_benefit": suppress(_hide_few_flagged(net_benefit, privacy), ["task"], privacy),
        "subgroups": _without_values(suppress(subgroups, ["task", "group", "level"], privacy, parts), ESTIMATES),
    }


def write_scores(
    predictions: Sequence[Path],
    models: Sequence[Path],
    labels_folder: Path,
    groups_folder: Path,
    splits_file: Path,
    statistics: Statistics,
    privacy: Privacy,
    out: Path,
) -> pl.DataFrame:
    """Writes scores, differences, wins, few_shot, calibration, reliability, net_benefit, subgroups, labels, models and
    curves (.csv) and provenance.json to `out`; returns the scores that are shown.

    Raises InputError if the predictions or the groups were made from other labels or other splits, or a model is given
    twice.
    """
    for folder in predictions:
        require_same_input(folder, PREDICTIONS, "labels", labels_folder)
    require_same_input(groups_folder, GROUPS, "labels", labels_folder)
    read = [read_predictions(folder) for folder in predictions]
    refuse_repeated([model for model, _, _ in read], "the predictions")
    frames = [frame for _, frame, _ in read]
    splits = read_splits(splits_file)
    _refuse_other_splits(frames, splits, splits_file)
    found = evaluate(frames, read_groups(groups_folder), read_history(labels_folder), statistics, privacy)
    reasons = {task: fact.get("not_estimable") for _, _, facts in read for task, fact in facts.items()}
    left_out = {task: left_out_text(counts, privacy) for task, counts in read_left_out(labels_folder).items()}
    counted = label_table(read_labels(labels_folder), splits, reasons).with_columns(
        left_out=pl.col("task").replace_strict(left_out, default="", return_dtype=pl.String)
    )
    trained, curves = model_tables(models)
    found |= {
        "labels": suppress(counted, ["task", "split"], privacy),
        "models": trained.with_columns(subjects=mask(pl.col("subjects"), privacy)) if trained.height else trained,
        "curves": curves,
    }
    for name, frame in found.items():
        write_table(frame, Path(out) / f"{name}.csv")
    settings = {"statistics": statistics.model_dump(), "privacy": privacy.model_dump()}
    inputs = by_place([*predictions, *models, labels_folder, groups_folder, splits_file])
    write_provenance(Path(out) / "provenance.json", settings, inputs, [Path(out) / f"{name}.csv" for name in found])
    return found["scores"].drop_nulls("value")
