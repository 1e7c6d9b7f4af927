"""`ehrctx robustness`: strata.csv and perplexity.csv, the tidy tables of the three analyses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrctx.artifacts import fingerprint, new_file, read_manifest
from ehrctx.errors import InputError
from ehrctx.probe.predict import KIND as PREDICTIONS
from ehrctx.probe.predict import read_predictions
from ehrctx.probe.score import mask
from ehrctx.robustness.progression import perplexity_table
from ehrctx.robustness.properties import KIND as PROPERTIES
from ehrctx.robustness.properties import read_properties
from ehrctx.robustness.strata import strata_table
from ehrctx.study import Perplexity, Privacy, Statistics

COUNTS = ("n", "n_positive", "n_subjects")


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

    Raises InputError if predictions and properties come from different labels.
    """
    of_properties = read_manifest(properties, PROPERTIES)["inputs"]["labels"]
    for folder in predictions:
        if read_manifest(folder, PREDICTIONS)["inputs"]["labels"] != of_properties:
            raise InputError(
                f"{folder} and {properties} were made from different labels. Make them again from the same."
            )
    tables = {
        "strata": strata_table([read_predictions(p)[1] for p in predictions], read_properties(properties), statistics),
        "perplexity": perplexity_table(losses, perplexity, statistics),
    }
    for name, table in tables.items():
        counts = [mask(pl.col(c), privacy).alias(c) for c in COUNTS if c in table.columns]
        with new_file(Path(out) / f"{name}.csv") as partial:
            table.with_columns(counts).write_csv(partial, float_precision=6)
    provenance = {
        "statistics": statistics.model_dump(),
        "perplexity": perplexity.model_dump(),
        "inputs": {f"{p.parent.name}/{p.name}": fingerprint(p) for p in (*predictions, properties, *losses)},
    }
    with new_file(Path(out) / "robustness.json") as partial:
        partial.write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    return tables
