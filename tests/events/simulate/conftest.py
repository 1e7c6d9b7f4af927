"""Cohorts of the simulator's own tests, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from ehrctx.events.simulate.cohort import simulate
from ehrctx.events.simulate.parameters import Parameters, parameters_of
from ehrctx.study import Labels
from ehrctx.tasks.definition import DEFINITIONS
from ehrctx.tasks.label_sets import read_labels, write_labels

TASKS = tuple(sorted(file.stem for file in DEFINITIONS.glob("*.yaml")))


@dataclass(frozen=True)
class Simulated:
    """A cohort on disk: what was asked for, its folder and facts, its events, truth, and labels by task."""

    parameters: Parameters
    folder: Path
    facts: dict[str, int]
    events: pl.DataFrame
    subjects: pl.DataFrame
    diseases: pl.DataFrame
    truth: pl.DataFrame
    labels: dict[str, pl.DataFrame]
    label_facts: dict


def read_all(folder: Path) -> pl.DataFrame:
    """All parquet files of a folder, in order of their names."""
    return pl.concat([pl.read_parquet(file) for file in sorted(folder.glob("*.parquet"))])


@pytest.fixture(scope="session")
def preset(repository):
    """A function: a shipped preset's name and changes -> Parameters."""
    return lambda name, **changes: parameters_of(
        str(repository / "pipelines" / "cohorts" / f"{name}.yaml"), changes, "test"
    )


@pytest.fixture(scope="session")
def make(tmp_path_factory, repository):
    """A function: parameters, subjects, seed -> Simulated."""

    def made(parameters: Parameters, subjects: int, seed: int = 0) -> Simulated:
        root = tmp_path_factory.mktemp("simulated")
        folder = root / "events"
        facts = simulate(parameters, subjects, seed, folder)
        profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
        label_facts = write_labels(folder, profile, TASKS, Labels(), root / "labels")
        truth = folder / "truth"
        return Simulated(
            parameters,
            folder,
            facts,
            read_all(folder / "data"),
            read_all(truth / "subjects"),
            read_all(truth / "diseases"),
            read_all(truth / "labels"),
            read_labels(root / "labels"),
            label_facts,
        )

    return made


@pytest.fixture(scope="session")
def planted(make, preset):
    """4,000 subjects of the preset `planted`."""
    return make(preset("planted"), 4_000)


@pytest.fixture(scope="session")
def published(make, preset):
    """3,000 subjects of the preset `published`."""
    return make(preset("published"), 3_000)
