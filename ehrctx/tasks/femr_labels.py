"""Labels of a user's own `femr.labelers.Labeler` (femr 0.2), run over the data set.

femr reads a meds_reader database, so the data set is converted to one in a temporary folder. A labeler sees the raw
events in the order of the files, static ones first with time None: nothing is moved to the end of its day, as a
profile's `date_only` does. Columns that meds_reader cannot hold (booleans, lists, empty ones) are left out.

Source: https://github.com/som-shahlab/femr, https://github.com/EthanSteinberg/meds_reader
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.meds import Dataset
from ehrctx.events.shards import read_valid
from ehrctx.tasks.definition import Femr
from ehrctx.tasks.labelers import LABEL_SCHEMA

CONVERT = "import meds_reader; meds_reader.meds_reader_convert()"
EVENT: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
}


def _require_femr() -> None:
    for package in ("femr", "meds_reader"):
        if importlib.util.find_spec(package) is None:
            raise InputError(
                "a task of the family femr needs the package femr, which this environment lacks. Install the extra "
                "with pip install --editable '.[femr]' (Linux, Python before 3.13)."
            )


def _readable(raw: pl.DataFrame) -> pl.DataFrame:
    """The raw events of a shard in the types that meds_reader reads."""
    columns = []
    for name, dtype in raw.schema.items():
        if name in EVENT:
            columns.append(pl.col(name).cast(EVENT[name]))
        elif isinstance(dtype, pl.Datetime):
            columns.append(pl.col(name).dt.replace_time_zone(None).cast(pl.Datetime("us")))
        elif isinstance(dtype, pl.Categorical | pl.Enum):
            columns.append(pl.col(name).cast(pl.String))
        elif dtype == pl.String or dtype.is_integer() or dtype.is_float():
            columns.append(pl.col(name))
    if "numeric_value" not in raw.columns:  # MEDS 0.4 may leave it out
        columns.append(pl.lit(None, pl.Float32).alias("numeric_value"))
    return raw.select(columns)


def _convert(dataset: Dataset, folder: Path) -> Path:
    """A meds_reader database of the data set, below `folder`."""
    copy, database = folder / "meds", folder / "database"
    for place in (copy / "data", copy / "metadata"):
        place.mkdir(parents=True)
    for i, shard in enumerate(dataset.shards):
        raw = read_valid(dataset, shard)
        _readable(raw).write_parquet(copy / "data" / f"{i:06}.parquet")
    words = [sys.executable, "-c", CONVERT, str(copy), str(database), "--num_threads", "1"]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["it says nothing"])[-1].strip()
        raise InputError(f"meds_reader_convert cannot read {dataset.root} ({reason}). Write its columns as MEDS does.")
    return database


def _labeler(definition: Femr) -> Any:
    """An instance of the user's class, from the file that the definition names."""
    from femr.labelers import Labeler

    file, cls = definition.file, definition.labeler.rpartition(":")[2]
    spec = importlib.util.spec_from_file_location(f"ehrctx_labeler_{definition.task}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their own module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{file} cannot be imported: {type(error).__name__}: {error}. Fix it.") from error
    found = getattr(module, cls, None)
    if not (isinstance(found, type) and issubclass(found, Labeler)):
        raise InputError(f"{file} has no class {cls!r} that derives from femr.labelers.Labeler. Fix `labeler`.")
    try:
        return found(**definition.arguments)
    except Exception as error:
        raise InputError(
            f"{file}: {cls} does not take its `arguments`: {type(error).__name__}: {error}. Fix the definition."
        ) from error


def _apply(labeler: Any, database: Any, definition: Femr) -> pl.DataFrame:
    task = definition.task
    try:
        made = labeler.apply(database)
    except Exception as error:  # the user's own code: its message may hold a value of a patient, so it is not shown
        frames = traceback.extract_tb(error.__traceback__)
        where = [frame for frame in frames if Path(frame.filename).resolve() == definition.file.resolve()] or frames
        raise InputError(
            f"the labeler of {task!r} failed with {type(error).__name__} in {where[-1].filename}, "
            f"line {where[-1].lineno}. Fix it."
        ) from error
    answers = made["boolean_value"].to_list()
    if not all(answer in (True, False) for answer in answers):
        raise InputError(f"the labeler of {task!r} gave a boolean_value that is neither True nor False. Fix it.")
    if made["prediction_time"].isna().any():
        raise InputError(f"the labeler of {task!r} gave a label without a prediction_time. Fix it.")
    columns = {
        "subject_id": made["subject_id"].to_list(),
        "prediction_time": made["prediction_time"].to_list(),
        "boolean_value": [bool(answer) for answer in answers],
        "integer_value": [None] * len(answers),
    }
    return pl.DataFrame(columns, schema=LABEL_SCHEMA)


def femr_labels(dataset: Dataset, definitions: Sequence[Femr]) -> dict[str, pl.DataFrame]:
    """By task, the labels (LABEL_SCHEMA) that its labeler gives to all subjects, in one process.

    Raises InputError where femr is not installed, or the labeler cannot be made or fails.
    """
    if not definitions:
        return {}
    _require_femr()
    from meds_reader import SubjectDatabase

    labelers = [_labeler(definition) for definition in definitions]
    with tempfile.TemporaryDirectory(prefix="ehrctx-femr-") as folder:
        database = SubjectDatabase(str(_convert(dataset, Path(folder))), num_threads=1)
        return {d.task: _apply(labeler, database, d) for d, labeler in zip(definitions, labelers, strict=True)}
