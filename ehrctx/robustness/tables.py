"""`ehrctx robustness`: strata.csv and perplexity.csv, the tidy tables of the three analyses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from ehrctx.artifacts import by_place, read_manifest, write_provenance, write_table
from ehrctx.errors import InputError, refuse_repeated
from ehrctx.probe.predict import KIND as PREDICTIONS
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.suppression import Cells, Counts, mask, of_partition, of_sum, suppress
from ehrctx.robustness.progression import perplexity_table
from ehrctx.robustness.properties import KIND as PROPERTIES
from ehrctx.robustness.properties import read_properties
from ehrctx.robustness.strata import DIFFERENCE, QUARTILES, strata_table
from ehrctx.study import Perplexity, Privacy, Statistics
from ehrctx.tasks.definition import MACRO

STRATUM = ("task", "property", "stratum")


def _hide_strata(
    privacy: Privacy, keys: Sequence[tuple], counts: Sequence[Counts], shown: Sequence[Cells]
) -> list[Cells]:
    """Nothing of a hidden stratum can be found from the task's other quarters, from a difference, or from the mean."""
    exact, found = dict(zip(keys, counts, strict=True)), dict(zip(keys, shown, strict=True))
    of_property = dict.fromkeys((task, name) for task, name, _ in keys)
    for task, name in of_property:
        strata = [(task, name, quartile) for quartile in QUARTILES]
        hidden = of_partition([exact[key] for key in strata], [found[key] for key in strata], privacy)
        found |= dict(zip(strata, hidden, strict=True))
    tasks = [task for task in dict.fromkeys(task for task, *_ in keys) if task != MACRO]
    for task, name, stratum in keys:
        if task == MACRO and stratum != DIFFERENCE:
            parts = [found[t, name, stratum] for t in tasks if (t, name, stratum) in found]
            found[task, name, stratum] = of_sum(found[task, name, stratum], parts)
    for task, name in of_property:
        ends = [found[task, name, quartile] for quartile in (QUARTILES[0], QUARTILES[-1])]
        found[task, name, DIFFERENCE] = of_sum(found[task, name, DIFFERENCE], ends)
    return list(found.values())


def write_tables(
    predictions: Sequence[Path],
    properties: Path,
    losses: Sequence[Path],
    statistics: Statistics,
    perplexity: Perplexity,
    privacy: Privacy,
    out: Path,
) -> dict[str, pl.DataFrame]:
    """Writes strata.csv, perplexity.csv and robustness.json (what both were made from) to `out`; returns the tables.

    Raises InputError if predictions and properties come from different labels, or a model is given twice.
    """
    of_properties = read_manifest(properties, PROPERTIES)["inputs"]["labels"]
    for folder in predictions:
        if read_manifest(folder, PREDICTIONS)["inputs"]["labels"] != of_properties:
            raise InputError(
                f"{folder} and {properties} were made from different labels. Make them again from the same."
            )
    read = [read_predictions(folder) for folder in predictions]
    refuse_repeated([model for model, _, _ in read], "the predictions")
    tables = {
        "strata": strata_table(
            [frame.filter(pl.col("k") == "all").collect() for _, frame, _ in read],
            read_properties(properties),
            statistics,
        ),
        "perplexity": perplexity_table(losses, perplexity, statistics),
    }
    written = {
        "strata": suppress(tables["strata"], STRATUM, privacy, partial(_hide_strata, privacy)),
        "perplexity": tables["perplexity"].with_columns(mask(pl.col(c), privacy).alias(c) for c in ("n", "n_subjects")),
    }
    for name, table in written.items():
        write_table(table, Path(out) / f"{name}.csv")
    settings = {
        "statistics": statistics.model_dump(),
        "perplexity": perplexity.model_dump(),
        "privacy": privacy.model_dump(),
    }
    inputs = by_place([*predictions, properties, *losses])
    write_provenance(Path(out) / "robustness.json", settings, inputs, [Path(out) / f"{name}.csv" for name in written])
    return tables
