"""An extract of femr 0.1 (femr.datasets.PatientDatabase) as parquet: python export.py EXTRACT OUT

Runs in the environment of requirements.txt alone, of which it uses femr and pyarrow. It writes to the folder OUT

* rows/NNNN.parquet: patient_id, start, end, code, number, text, unit, visit_id, omop_table, clarity_table,
  note_id; in the extract's order;
* patients.parquet: patient_id, bucket (0 to 99), the split of the published models: below 70 train, below 85 tuning;
* codes.parquet: code, description, parent_codes of every code that occurs, and of all that lies above it;
* about.json: how many patients and events.

femr cannot list the properties of an event, so those that its own pipelines write are read by name. One patient is held
at a time, and no more than ROWS_PER_FILE rows. An error names what failed, and where, but no patient.
"""

import json
import pathlib
import sys
import traceback

import pyarrow as pa
import pyarrow.parquet as pq
from femr.datasets import PatientDatabase

ROWS_PER_FILE = 500_000
SPLIT_SEED = 97  # of hf_ehr and ehrshot-benchmark
ROWS = pa.schema(
    [
        ("patient_id", pa.int64()),
        ("start", pa.timestamp("us")),
        ("end", pa.timestamp("us")),
        ("code", pa.string()),
        ("number", pa.float64()),
        ("text", pa.string()),
        ("unit", pa.string()),
        ("visit_id", pa.string()),  # text in extracts of femr's simple format, a number in those of OMOP
        ("omop_table", pa.string()),
        ("clarity_table", pa.string()),
        ("note_id", pa.string()),
    ]
)


def as_text(item):
    return None if item is None else str(item)


def row_of(patient_id, event):
    """One event in the order of ROWS."""
    value = event.value
    is_text = isinstance(value, str)
    return (
        patient_id,
        event.start,
        event.end,
        event.code,
        None if is_text else value,
        value if is_text else None,
        event.unit,
        as_text(event.visit_id),
        event.omop_table,
        event.clarity_table,
        as_text(event.note_id),
    )


def write_rows(rows, folder, number):
    columns = [pa.array(column, type=field.type) for column, field in zip(zip(*rows, strict=True), ROWS, strict=True)]
    pq.write_table(pa.Table.from_arrays(columns, schema=ROWS), folder / f"{number:04d}.parquet")


def write_events(database, out):
    """Writes all rows; returns the codes that occur, and the number of events."""
    (out / "rows").mkdir(parents=True)
    rows, codes, n_events, n_files = [], set(), 0, 0
    for patient_id in database:
        for event in database[patient_id].events:
            rows.append(row_of(patient_id, event))
            codes.add(event.code)
            if len(rows) == ROWS_PER_FILE:
                write_rows(rows, out / "rows", n_files)
                n_events, n_files, rows = n_events + len(rows), n_files + 1, []
    if rows:
        write_rows(rows, out / "rows", n_files)
    return codes, n_events + len(rows)


def write_patients(database, out):
    ids = list(database)
    buckets = [database.compute_split(SPLIT_SEED, patient_id) for patient_id in ids]
    pq.write_table(pa.table({"patient_id": pa.array(ids, pa.int64()), "bucket": buckets}), out / "patients.parquet")
    return len(ids)


def write_codes(ontology, codes, out):
    """Climbs from the codes that occur to all that lies above them."""
    parents, waiting = {}, sorted(codes)
    while waiting:
        code = waiting.pop()
        if code not in parents:
            parents[code] = sorted(ontology.get_parents(code))
            waiting.extend(parents[code])
    names = sorted(parents)
    table = {
        "code": names,
        "description": [ontology.get_text_description(name) or None for name in names],
        "parent_codes": pa.array([parents[name] or None for name in names], pa.list_(pa.string())),
    }
    pq.write_table(pa.table(table), out / "codes.parquet")


def export(extract, out):
    database = PatientDatabase(str(extract))
    out.mkdir(parents=True)
    patients = write_patients(database, out)
    codes, events = write_events(database, out)
    write_codes(database.get_ontology(), codes, out)
    about = {"patients": patients, "events": events}
    (out / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    try:
        export(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
    except Exception as error:  # its message may hold a value of a patient
        where = traceback.extract_tb(error.__traceback__)[-1]
        sys.exit(f"{type(error).__name__} in {pathlib.Path(where.filename).name}, line {where.lineno}")
