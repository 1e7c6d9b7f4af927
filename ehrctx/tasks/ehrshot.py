"""`ehrctx import ehrshot`: EHRSHOT's CSV release as one MEDS folder, with its splits, labels and few-shot draws."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ehrctx.artifacts import new_artifact
from ehrctx.events.ehrshot import SEVERAL_FINDINGS, SHOT_FILES, UNREAD, find_release, release_inputs, write_events
from ehrctx.events.ontology import UNREAD_VOCABULARY, athena_inventory
from ehrctx.inventory import tell_inventory
from ehrctx.tasks.definition import DEFINITIONS
from ehrctx.tasks.given import read_given

TASKS = sorted(path.stem for path in DEFINITIONS.glob("*.yaml"))


def _write_labels(files: dict[str, Path], folder: Path, subjects: np.ndarray) -> dict[str, Any]:
    """`labels/<task>/labels.parquet` in the MEDS label schema: every label of the release, none left out."""
    facts: dict[str, Any] = {"labels": {}, "labels_of_subjects_without_events": {}}
    for task, file in files.items():
        labels = read_given(file)
        (folder / "labels" / task).mkdir(parents=True)
        labels.write_parquet(folder / "labels" / task / "labels.parquet")
        facts["labels"][task] = labels.height
        unknown = int((~np.isin(labels["subject_id"].to_numpy(), subjects)).sum())
        if unknown:
            facts["labels_of_subjects_without_events"][task] = unknown
    return facts


def _copy_shots(files: dict[str, Path], folder: Path) -> list[str]:
    """`shots/<task>/…`, the release's few-shot draws as they are. Returns the tasks that have some."""
    copied = []
    for task, file in files.items():
        draws = [file.with_name(name) for name in SHOT_FILES if file.with_name(name).is_file()]
        if draws:
            (folder / "shots" / task).mkdir(parents=True)
            copied.append(task)
        for draw in draws:
            shutil.copyfile(draw, folder / "shots" / task / draw.name)
    return copied


def import_ehrshot(
    source: Path, out: Path, concepts: Path | None = None, implausible_time: str = "refuse", verbose: bool = False
) -> dict[str, Any]:
    """Writes EHRSHOT's CSV release below `source` to the folder `out`: `data/`, `metadata/`, `labels/`, `shots/`.

    `concepts` is the folder of an Athena download: descriptions and parents of codes. `implausible_time`: refuse or
    drop events whose start is a placeholder. Returns what was counted. Warns of files that nobody reads; `verbose` also
    lists those that are ignored by rule.

    Raises InputError, by file and row, where the release is incomplete or a text is not what its column holds.
    """
    release = find_release(source)
    inputs = release_inputs(release, Path(concepts) if concepts is not None else None)
    tell_inventory(release.inventory, UNREAD, verbose)
    if concepts is not None:
        tell_inventory(athena_inventory(Path(concepts)), UNREAD_VOCABULARY, verbose)
    facts: dict[str, Any] = {}
    settings = {"format": "ehrshot", "implausible_time": implausible_time}
    with new_artifact(out, "events", settings, inputs, facts) as folder:
        counted, subjects = write_events(release, folder, concepts, implausible_time)
        facts |= counted | _write_labels(release.labels, folder, subjects)
        facts["shots"] = _copy_shots(release.labels, folder)
        facts["tasks_without_labels"] = [task for task in TASKS if task not in release.labels]
        facts["files"] = release.inventory.facts()
        facts["tasks_left_out"] = [SEVERAL_FINDINGS]
    return facts
