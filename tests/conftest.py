"""Fixtures that all tests share: where the repository is, small MEDS data sets, one simulated cohort, the real demo."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

# Tests run side by side: each process of theirs, and of what they start, computes on one core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import polars as pl
import pytest

# The same examples on every run and every machine.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")

# Whole workflows, minutes each: begun at once, so that no process is left alone with one at the end.
LONGEST = ("test_workflow.py", "test_controls_run.py")
REPOSITORY = Path(__file__).resolve().parents[1]
COHORT_SUBJECTS = 400
COHORT_TASKS = ("guo_los", "lab_hyponatremia", "new_acutemi")


@dataclass(frozen=True)
class Cohort:
    """Where the simulated cohort lies: its MEDS events, its table of splits, its CLMBR timelines, its labels."""

    root: Path
    events: Path
    splits: Path
    timelines: Path
    labels: Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; all else stays in order."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository, where tokenizers/ and pipelines/ are."""
    return REPOSITORY


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `ehrctx` with these words in the repository's root; returns its exit code and what it said."""
    from ehrctx.cli import main

    def command(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(REPOSITORY)
        monkeypatch.setattr(sys, "argv", ["ehrctx", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return command


@pytest.fixture(scope="session")
def write_meds():
    """A function that writes a MEDS data set to a folder and returns the folder.

    `shards` maps a name below data/ ("0", "train/0") to its rows; `splits` maps subject ids to split names, or is the
    whole table; `codes` is the table of metadata/codes.parquet. What is None is not written.
    """

    def write(
        folder: Path,
        shards: dict[str, pl.DataFrame],
        splits: dict[int, str] | pl.DataFrame | None = None,
        codes: pl.DataFrame | None = None,
    ) -> Path:
        folder = Path(folder)
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        for name, rows in shards.items():
            file = folder / "data" / f"{name}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            rows.write_parquet(file)
        if isinstance(splits, dict):
            splits = pl.DataFrame(
                {"subject_id": list(splits), "split": list(splits.values())},
                schema={"subject_id": pl.Int64, "split": pl.String},
            )
        if splits is not None:
            splits.write_parquet(folder / "metadata" / "subject_splits.parquet")
        if codes is not None:
            codes.write_parquet(folder / "metadata" / "codes.parquet")
        return folder

    return write


@pytest.fixture(scope="session")
def write_given_labels():
    """A function that writes label files as EHRSHOT lays them out, `<task>/labels.parquet`, and returns the tables.

    Every subject of `subject_ids` has two labels a task; laboratory tasks have grades, of which 0 is negative, and no
    boolean_value.
    """

    def write(folder: Path, tasks: Sequence[str], subject_ids: Sequence[int]) -> dict[str, pl.DataFrame]:
        made = {}
        for t, task in enumerate(tasks):
            rows = [
                {
                    "subject_id": subject,
                    "prediction_time": datetime(2010 + t, 1 + 6 * i, 1, 23, 59),
                    "boolean_value": None if task.startswith("lab_") else (s + i + t) % 3 == 0,
                    "integer_value": (s + 2 * i) % 4 if task.startswith("lab_") else None,
                }
                for s, subject in enumerate(sorted(subject_ids))
                for i in range(2)
            ]
            schema = {
                "subject_id": pl.Int64,
                "prediction_time": pl.Datetime("us"),
                "boolean_value": pl.Boolean,
                "integer_value": pl.Int64,
            }
            made[task] = pl.DataFrame(rows, schema=schema)
            file = Path(folder) / task / "labels.parquet"
            file.parent.mkdir(parents=True)
            made[task].write_parquet(file)
        return made

    return write


ATHENA_COLUMNS = {
    "CONCEPT.csv": "concept_id concept_name domain_id vocabulary_id concept_class_id standard_concept concept_code "
    "valid_start_date valid_end_date invalid_reason",
    "CONCEPT_ANCESTOR.csv": "ancestor_concept_id descendant_concept_id min_levels_of_separation "
    "max_levels_of_separation",
    "CONCEPT_RELATIONSHIP.csv": "concept_id_1 concept_id_2 relationship_id valid_start_date valid_end_date "
    "invalid_reason",
}


@pytest.fixture(scope="session")
def write_athena():
    """A function (folder, file name -> rows) that writes files as Athena does: tabs, and quotes are characters."""

    def write(folder: Path, files: dict[str, Sequence[Sequence[object]]]) -> Path:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, rows in files.items():
            lines = ["\t".join(ATHENA_COLUMNS[name].split()), *("\t".join(map(str, row)) for row in rows)]
            (Path(folder) / name).write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(scope="session")
def mimic_demo() -> Path:
    """The folder of the MIMIC-IV demo (100 subjects, open data) in MEDS form."""
    folder = os.environ.get("EHRCTX_MIMIC_DEMO")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set EHRCTX_MIMIC_DEMO to the MIMIC-IV demo in MEDS form")
    return Path(folder)


@pytest.fixture(scope="session")
def omop_demo() -> Path:
    """The folder of Synthea27Nj (28 simulated subjects, OMOP CDM 5.4), as CSV files."""
    folder = os.environ.get("EHRCTX_OMOP_DEMO")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set EHRCTX_OMOP_DEMO to the folder of Synthea27Nj's tables, from the OHDSI Eunomia data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def cohort(tmp_path_factory, repository) -> Cohort:
    """400 simulated subjects with splits, CLMBR timelines and the labels of three tasks. Read it, never change it."""
    from ehrctx.events.meds import open_dataset
    from ehrctx.events.simulate.cohort import simulate
    from ehrctx.events.simulate.parameters import parameters_of
    from ehrctx.events.splits import subject_splits
    from ehrctx.study import Labels
    from ehrctx.tasks.label_sets import write_labels
    from ehrctx.timelines.build import build_timelines

    root = tmp_path_factory.mktemp("cohort")
    made = Cohort(root, root / "events", root / "splits.parquet", root / "timelines", root / "labels")
    preset = str(repository / "pipelines" / "cohorts" / "planted.yaml")
    simulate(parameters_of(preset, {}, "test"), COHORT_SUBJECTS, 0, made.events)
    subject_splits(open_dataset(made.events), None).write_parquet(made.splits)
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    build_timelines(made.events, profile, made.splits, str(repository / "tokenizers" / "clmbr.yaml"), made.timelines)
    write_labels(made.events, profile, COHORT_TASKS, Labels(max_times_per_subject=2), made.labels)
    return made
