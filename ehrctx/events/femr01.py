"""Extracts of femr 0.1, whose package needs an environment of its own: that environment, and the way to MEDS.

femr 0.1.16 needs numpy before 2 and Python 3.11 at most, and shares its name with femr 0.2, so it is never imported
here: `pipelines/femr01/export.py` runs in a virtual environment of `pipelines/femr01/requirements.txt`, and writes the
extract as parquet, which is then turned into MEDS as EHRSHOT's rows are.

Source: https://github.com/som-shahlab/femr (v0.1.16), https://github.com/som-shahlab/hf_ehr (its splits)
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import exclusive, fingerprint
from ehrctx.errors import InputError
from ehrctx.events.batches import Batch
from ehrctx.events.columns import integers
from ehrctx.events.event_rows import OURS, Counts, discharges, implausible_starts, to_events
from ehrctx.events.limits import IMPLAUSIBLE
from ehrctx.events.ontology import described
from ehrctx.events.units import is_missing_unit
from ehrctx.events.writer import sharded, shards_for, write_metadata

TOOLS = Path("pipelines/femr01")
ENVIRONMENT = Path("results/environments/femr01")
FINISHED = "finished"  # written last; holds the fingerprint of the requirements
NEEDED_PYTHON = (3, 11)
ALSO = ("clarity_table", "note_id")  # columns that femr's own pipelines write, beside those of every row
TRAIN_BELOW, TUNING_BELOW = 70, 85  # of 100 buckets: hf_ehr's splits of an extract


def is_extract(folder: Path) -> bool:
    """Whether `folder` is an extract of femr 0.1."""
    return all((folder / name).is_file() for name in ("meta", "patients")) and (folder / "ontology").is_dir()


def _interpreter() -> str:
    """A Python for which femr 0.1.16 is there as a wheel."""
    if sys.version_info[:2] == NEEDED_PYTHON:
        return sys.executable
    found = shutil.which("python3.11")
    if found is None:
        raise InputError("extracts of femr 0.1 are read by Python 3.11, and no python3.11 is on the PATH. Install it.")
    return found


def is_made(environment: Path) -> bool:
    """Whether the environment is there, and of today's requirements."""
    mark = environment / FINISHED
    return mark.is_file() and mark.read_text() == fingerprint(TOOLS / "requirements.txt")


def make_environment(environment: Path) -> Path:
    """The Python of the environment that reads extracts of femr 0.1; made with pip if it is not there yet.

    Raises InputError, with the commands to run elsewhere, where pip cannot fetch the packages.
    """
    python = environment.absolute() / "bin" / "python"
    requirements = TOOLS / "requirements.txt"
    if not requirements.is_file():
        raise InputError(f"no such file: {requirements}. Run this in the root of the repository.")
    with exclusive(environment.with_name(f".{environment.name}.lock"), f"making {environment}"):
        if is_made(environment):
            return python
        shutil.rmtree(environment, ignore_errors=True)  # of a killed run, or of other requirements
        commands = [
            [_interpreter(), "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
        ]
        for command in commands:
            print(f"Making {environment}: {shlex.join(command)}", file=sys.stderr, flush=True)
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
                raise InputError(
                    f"the environment {environment} cannot be made: {shlex.join(command)} failed, as it says above. "
                    f"Run it where packages can be fetched, and start again."
                )
        (environment / FINISHED).write_text(fingerprint(requirements))
    return python


def export(extract: Path, out: Path, environment: Path) -> None:
    """Writes the extract to the folder `out`, as `pipelines/femr01/export.py` says."""
    python = make_environment(environment)
    # isolated (-I), and without our own PYTHONPATH: the two femr must not meet
    command = [str(python), "-I", str(TOOLS / "export.py"), str(extract), str(out)]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["it says nothing"])[-1].strip()
        raise InputError(f"{extract} cannot be read by femr 0.1.16 ({reason}). Give a whole extract of femr 0.1.")


def _splits(patients: pl.DataFrame) -> pl.DataFrame:
    is_train, is_tuning = pl.col("bucket") < TRAIN_BELOW, pl.col("bucket") < TUNING_BELOW
    split = pl.when(is_train).then(pl.lit("train")).when(is_tuning).then(pl.lit("tuning")).otherwise(pl.lit("held_out"))
    return patients.select(subject_id="patient_id", split=split).sort("subject_id")


def write_events(exported: Path, folder: Path, implausible_time: str = "refuse") -> dict[str, Any]:
    """Writes `data/` and `metadata/` to `folder` as MEDS 0.4, from what `export` wrote. Returns what was counted.

    `implausible_time`: refuse or drop events whose start is a placeholder.
    """
    about = json.loads((exported / "about.json").read_text())
    counts = Counts()
    ends = []
    used: set[str] = set()
    with sharded(folder, shards_for(about["events"])) as writer:
        for file in sorted((exported / "rows").iterdir()):
            rows = pl.read_parquet(file)
            visits = integers(Batch(Path("the extract"), 1, rows), "visit_id")
            unit = pl.col("unit").cast(pl.String)
            typed = rows.with_columns(visits, unit=pl.when(~is_missing_unit(unit)).then(unit))
            if implausible_time == "refuse" and implausible_starts(typed).any():
                raise InputError(f"the extract holds an event whose start {IMPLAUSIBLE}")
            events = to_events(typed, counts, ALSO)
            writer.add(events)
            ends.append(discharges(events, counts))
            used.update(events["code"].unique())
        if not ends:
            raise InputError("the extract holds no events. Give a whole extract of femr 0.1.")
        closed = pl.concat(ends)
        writer.add(closed)
        used.update(closed["code"].unique())
    splits = _splits(pl.read_parquet(exported / "patients.parquet"))
    codes = pl.concat([pl.read_parquet(exported / "codes.parquet"), described(closed["code"].unique(), None, OURS)])
    write_metadata(folder, {"dataset_name": "femr 0.1 extract", "etl_name": "ehrctx import femr"}, codes, splits)
    return {
        "subjects": about["patients"],
        "rows": about["events"],
        "events": writer.n_events,
        "ends_of_visits": closed.height,
        "codes": len(used),
        **counts.facts(),
        "splits": dict(splits["split"].value_counts().sort("split").iter_rows()),
    }
