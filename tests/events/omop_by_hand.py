"""A small CDM by hand, how to write it in all its forms, and a second, slow importer that reads one row at a time."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

Tables = dict[str, list[dict[str, object]]]


def table(columns: str, *rows: Sequence[object]) -> list[dict[str, object]]:
    return [dict(zip(columns.split(), row, strict=True)) for row in rows]


ICU, DIAGNOSES = "Visit/OMOP4822460", "condition_occurrence"
SMOKED = 'Never, "ever"\nsmoked'


def small_cdm() -> Tables:
    """Three persons whom the tests know; a row of a fourth one that PERSON lacks."""
    return {
        "person": table(
            "person_id gender_concept_id year_of_birth month_of_birth day_of_birth birth_datetime race_concept_id "
            "ethnicity_concept_id gender_source_value gender_source_concept_id race_source_value",
            (1, 8532, 1980, 3, 4, "1980-03-04 05:00:00", 8527, 0, "F", 0, "white"),
            (2, 0, 1990, None, None, None, 0, 0, "U", 0, None),
            (3, 8507, 2000, 7, None, None, 8527, 0, "M", 0, "white"),
        ),
        "concept": table(
            "concept_id concept_name domain_id vocabulary_id concept_class_id standard_concept concept_code "
            "valid_start_date valid_end_date invalid_reason",
            *(
                (number, name, "any", *system, "S", code, "1970-01-01", "2099-12-31", None)
                for number, name, system, code in (
                    (8532, "FEMALE", ("Gender", "Gender"), "F"),
                    (8507, "MALE", ("Gender", "Gender"), "M"),
                    (8527, "White", ("Race", "Race"), "5"),
                    (9201, "Inpatient Visit", ("Visit", "Visit"), "IP"),
                    (32037, "Intensive Care", ("Visit", "Visit"), "OMOP4822460"),
                    (320128, "Essential hypertension", ("SNOMED", "Disorder"), "59621000"),
                    (316866, "Hypertensive disorder", ("SNOMED", "Disorder"), "38341003"),
                    (134057, "Disorder of cardiovascular system", ("SNOMED", "Disorder"), "49601007"),
                    (999, "Unrelated", ("SNOMED", "Disorder"), "999"),
                    (35207668, "Essential (primary) hypertension", ("ICD10CM", "Code"), "I10"),
                    (3023103, "Potassium, serum", ("LOINC", "Lab Test"), "2823-3"),
                    (8753, "millimole per liter", ("UCUM", "Unit"), "mmol/L"),
                    (4181412, "Present", ("SNOMED", "Qualifier"), "52101004"),
                    (4275495, "Tobacco use", ("SNOMED", "Finding"), "365981007"),
                    (19078461, "ibuprofen 200 MG", ("RxNorm", "Drug"), "310965"),
                    (4107731, "Chest \"X-ray\", frontal", ("SNOMED", "Procedure"), "399208008"),
                    (4217646, "Pacemaker", ("SNOMED", "Device"), "72506001"),
                )
            ),
        ),
        "visit_occurrence": table(
            "visit_occurrence_id person_id visit_concept_id visit_start_date visit_start_datetime visit_end_date "
            "visit_end_datetime visit_source_value visit_source_concept_id",
            (10, 1, 9201, "2020-01-05", "2020-01-05 08:00:00", "2020-01-07", "2020-01-07 10:00:00", "7bc8c026", 0),
            (11, 2, 0, "2021-02-03", None, None, None, "84797320", 0),
            (12, 3, 9201, "2010-05-05", "2010-05-05 09:30:00", "2010-05-05", None, "3528b5de", 0),
            (13, 3, 9201, "2011-05-05", "2011-05-05 09:30:00", "2011-05-03", None, "2528b5de", 0),
        ),
        "visit_detail": table(
            "visit_detail_id person_id visit_detail_concept_id visit_detail_start_date visit_detail_start_datetime "
            "visit_detail_end_date care_site_id visit_detail_source_value visit_occurrence_id",
            (20, 1, 32037, "2020-01-05", "2020-01-05 08:00:00", "2020-01-06", 77, "7bc8c026", 10),
        ),
        "condition_occurrence": table(
            "person_id condition_concept_id condition_start_date condition_end_date condition_source_value "
            "condition_source_concept_id visit_occurrence_id",
            (1, 320128, "2020-01-07", "2020-02-01", "I10", 35207668, 10),
            (2, 0, "2021-02-03", None, "X99", 0, None),
            (2, 0, "2021-02-03", None, None, 0, None),
            (9, 320128, "2021-02-03", None, None, 0, None),
        ),
        "drug_exposure": table(
            "person_id drug_concept_id drug_exposure_start_date drug_exposure_end_date drug_source_value "
            "drug_source_concept_id visit_occurrence_id quantity days_supply",
            (1, 19078461, "2020-01-07", "2020-01-21", "310965", 19078461, 10, 30, 14),
        ),
        "procedure_occurrence": table(
            "person_id procedure_concept_id procedure_date procedure_datetime procedure_source_value "
            "procedure_source_concept_id visit_occurrence_id",
            (1, 4107731, "2020-01-05", "2020-01-05 08:00:00", "71046", 0, 10),
        ),
        "measurement": table(
            "person_id measurement_concept_id measurement_date measurement_datetime operator_concept_id "
            "value_as_number value_as_concept_id unit_concept_id visit_occurrence_id measurement_source_value "
            "measurement_source_concept_id unit_source_value value_source_value",
            (1, 3023103, "2020-01-05", "2020-01-05 08:00:00", 0, 5.9, 0, 8753, 10, "K", 0, "mmol per l", "5.9"),
            (1, 3023103, "2020-01-06", "2020-01-06 06:00:00", 4172704, 6.5, 0, 0, 10, "K", 0, "mEq/L", ">6.5"),
            (1, 3023103, "2020-01-06", "2020-01-06 07:00:00", 4172703, 0.0, None, None, None, "K", 0, None, "≤ 0.0"),
            (1, 3023103, "2020-01-06", "2020-01-06 08:00:00", 0, None, 4181412, 8753, None, "K", 0, "mmol/L", "pos"),
            (1, 777777, "2020-01-06", "2020-01-06 09:00:00", 0, 5, 0, 0, None, "GLU", 0, None, "5 haemolysed"),
            (2, 3023103, "1989-12-15", None, 0, 4, 0, 8753, None, "2823-3", 3023103, None, "haemolysed"),
        ),
        "observation": table(
            "person_id observation_concept_id observation_date value_as_number value_as_string value_as_concept_id "
            "observation_source_value observation_source_concept_id",
            (3, 4275495, "2010-05-05", None, SMOKED, 0, "smoking", 0),
        ),
        "device_exposure": table(
            "person_id device_concept_id device_exposure_start_date device_exposure_end_date device_source_value",
            (1, 4217646, "2020-01-07", None, None),
        ),
        "death": table(
            "person_id death_date death_datetime cause_concept_id cause_source_value cause_source_concept_id",
            (1, "2022-01-01", "2022-01-01 00:00:00", 320128, None, 0),
            (2, "2022-01-02", None, 0, None, 0),
        ),
        "concept_relationship": table(
            "concept_id_1 concept_id_2 relationship_id valid_start_date valid_end_date invalid_reason",
            (35207668, 320128, "Maps to", "1970-01-01", "2099-12-31", None),
            (320128, 320128, "Maps to", "1970-01-01", "2099-12-31", None),
            (320128, 999, "Is a", "1970-01-01", "1999-12-31", "D"),
            (320128, 35207668, "Mapped from", "1970-01-01", "2099-12-31", None),
        ),
        "concept_ancestor": table(
            "ancestor_concept_id descendant_concept_id min_levels_of_separation max_levels_of_separation",
            (316866, 320128, 1, 1),
            (134057, 320128, 2, 2),
            (134057, 316866, 1, 1),
            (320128, 320128, 0, 0),
            (134057, 999, 1, 1),
        ),
        "care_site": table("care_site_id care_site_name", (77, "Medical ICU"), (78, "Ward")),
    }  # fmt: skip


def at(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


# subject_id, time, code, numeric_value, text_value, unit, visit_id, table, source_code, end
SMALL_MEDS = [
    (subject, at(time), code, number, text, unit, visit, table, source, at(end))
    for subject, time, code, number, text, unit, visit, table, source, end in [
        (1, None, "Gender/F", None, None, None, None, "person", None, None),
        (1, None, "Race/5", None, None, None, None, "person", "white", None),
        (1, "1980-03-04T05:00", "MEDS_BIRTH", None, None, None, None, "person", None, None),
        (1, "2020-01-05T08:00", "Visit/IP", None, None, None, 10, "visit_occurrence", None, "2020-01-07T10:00"),
        (1, "2020-01-05T08:00", f"VISIT_DETAIL//{ICU}", None, None, None, 10, "visit_detail", None, "2020-01-06"),
        (1, "2020-01-05T08:00", "CARE_SITE/77", None, None, None, 10, "visit_detail", None, None),
        (1, "2020-01-05T08:00", "LOINC/2823-3", 5.9, None, "mmol/L", 10, "measurement", "K", None),
        (1, "2020-01-05T08:00", "SNOMED/399208008", None, None, None, 10, "procedure_occurrence", "71046", None),
        (1, "2020-01-06", f"VISIT_DETAIL//{ICU}//END", None, None, None, 10, "visit_detail", None, None),
        (1, "2020-01-06T06:00", "LOINC/2823-3", 6.5, ">", "mEq/L", 10, "measurement", "K", None),
        (1, "2020-01-06T07:00", "LOINC/2823-3", 0.0, "<=", None, None, "measurement", "K", None),
        (1, "2020-01-06T08:00", "LOINC/2823-3", None, "Present", None, None, "measurement", "K", None),
        (1, "2020-01-06T09:00", "UNMAPPED/measurement/GLU", 5.0, None, None, None, "measurement", None, None),
        (1, "2020-01-07", "SNOMED/59621000", None, None, None, 10, "condition_occurrence", "ICD10CM/I10", "2020-02-01"),
        (1, "2020-01-07", "RxNorm/310965", None, None, None, 10, "drug_exposure", None, "2020-01-21"),
        (1, "2020-01-07", "SNOMED/72506001", None, None, None, None, "device_exposure", None, None),
        (1, "2020-01-07T10:00", "Visit/IP//END", None, None, None, 10, "visit_occurrence", None, None),
        (1, "2022-01-01", "SNOMED/59621000", None, None, None, None, "death", None, None),
        (1, "2022-01-01", "MEDS_DEATH", None, None, None, None, "death", None, None),
        (2, None, "UNMAPPED/gender/U", None, None, None, None, "person", None, None),
        (2, "1990-01-01", "MEDS_BIRTH", None, None, None, None, "person", None, None),
        (2, "1990-01-01", "LOINC/2823-3", 4.0, "haemolysed", "mmol/L", None, "measurement", None, None),
        (2, "2021-02-03", "UNMAPPED/visit_occurrence", None, None, None, 11, "visit_occurrence", None, None),
        (2, "2021-02-03", f"UNMAPPED/{DIAGNOSES}/X99", None, None, None, None, DIAGNOSES, None, None),
        (2, "2022-01-02", "MEDS_DEATH", None, None, None, None, "death", None, None),
        (3, None, "Gender/M", None, None, None, None, "person", None, None),
        (3, None, "Race/5", None, None, None, None, "person", "white", None),
        (3, "2000-07-01", "MEDS_BIRTH", None, None, None, None, "person", None, None),
        (3, "2010-05-05", "SNOMED/365981007", None, SMOKED, None, None, "observation", "smoking", None),
        # only the day of the end is known: the visit was over at the day's end
        (3, "2010-05-05T09:30", "Visit/IP", None, None, None, 12, "visit_occurrence", None, "2010-05-05T23:59"),
        (3, "2010-05-05T23:59", "Visit/IP//END", None, None, None, 12, "visit_occurrence", None, None),
        # its end is two days before its start: it is left open
        (3, "2011-05-05T09:30", "Visit/IP", None, None, None, 13, "visit_occurrence", None, None),
    ]
]  # fmt: skip


def _written(value: object) -> str:
    return "" if value is None else str(value)


def write_csv(file: Path, rows: list[dict[str, object]], upper: bool = False, separator: str = ",") -> None:
    opened: Callable = gzip.open if file.suffix == ".gz" else open
    with opened(file, "wt", encoding="utf-8", newline="") as stream:
        writer = csv.writer(
            stream, delimiter=separator, quoting=csv.QUOTE_ALL if separator == "\t" else csv.QUOTE_MINIMAL
        )
        writer.writerow([name.upper() if upper else name for name in rows[0]])
        writer.writerows([_written(value) for value in row.values()] for row in rows)


def write_parquet(file: Path, rows: list[dict[str, object]], upper: bool = False) -> None:
    """With types as a database has them: dates and date-times, whole numbers."""
    frame = pl.DataFrame(rows, infer_schema_length=None)
    frame = frame.with_columns(
        pl.col(name).cast(pl.String).str.to_date() for name in frame.columns if name.endswith("_date")
    )
    times = [name for name in frame.columns if name.endswith("_datetime")]
    frame = frame.with_columns(pl.col(name).cast(pl.String).str.to_datetime("%F %T", time_unit="ns") for name in times)
    frame.rename(str.upper if upper else str).write_parquet(file)


def write_cdm(folder: Path, tables: Tables, form: str = "csv") -> Path:
    """`form`: csv, CSV (upper case), semicolons, tabs (all quoted), parquet, PARQUET, gz, or folders with one file for
    each row: parts, and spark, which names them as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if form in ("parts", "spark"):
            parts = folder / (name if form == "parts" else f"{name}.csv")
            parts.mkdir()
            (parts / "_SUCCESS").touch()
            for part, row in enumerate(rows):
                write_csv(parts / f"{part:03d}.csv", [row])
        elif form.lower() == "parquet":
            write_parquet(folder / f"{name.upper() if form == 'PARQUET' else name}.parquet", rows, form == "PARQUET")
        else:
            suffix = "csv.gz" if form == "gz" else "csv"
            file = folder / f"{name.upper() if form == 'CSV' else name}.{suffix}"
            write_csv(
                file,
                rows,
                upper=form == "CSV",
                separator=";" if form == "semicolons" else "\t" if form == "tabs" else ",",
            )
    return folder


def as_5_3(tables: Tables) -> Tables:
    """The same in the columns of CDM 5.3: what 5.4 renamed or added besides is read by nobody."""
    renamed = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    for row in renamed["visit_occurrence"]:
        row |= {"admitting_source_concept_id": 0, "discharge_to_concept_id": 0}
    for row in renamed["visit_detail"]:
        row |= {"admitting_source_concept_id": 0, "visit_detail_parent_id": None}
    return renamed


def as_5_4(tables: Tables) -> Tables:
    """The same in the columns of CDM 5.4, among them the ends of procedures."""
    extended = {name: [dict(row) for row in rows] for name, rows in tables.items()}
    for row in extended["procedure_occurrence"]:
        row |= {"procedure_end_date": None, "procedure_end_datetime": None}
    for row in extended["measurement"]:
        row |= {"unit_source_concept_id": None, "measurement_event_id": None, "meas_event_field_concept_id": None}
    for row in extended["visit_occurrence"]:
        row |= {"admitted_from_concept_id": 0, "discharged_to_concept_id": 0}
    return extended


# --- the slow importer ------------------------------------------------------------------------------------------------

STARTS = {
    "visit_occurrence": ("visit", "visit_start", "visit_end"),
    "visit_detail": ("visit_detail", "visit_detail_start", "visit_detail_end"),
    "observation": ("observation", "observation", None),
    "condition_occurrence": ("condition", "condition_start", "condition_end"),
    "measurement": ("measurement", "measurement", None),
    "procedure_occurrence": ("procedure", "procedure", "procedure_end"),
    "drug_exposure": ("drug", "drug_exposure_start", "drug_exposure_end"),
    "device_exposure": ("device", "device_exposure_start", "device_exposure_end"),
}
SIGNS = {"4171756": "<", "4171754": "<=", "4172704": ">", "4171755": ">="}


def read_rows(folder: Path, name: str) -> list[dict[str, str]]:
    files = [file for file in folder.iterdir() if file.name.lower() == f"{name}.csv"]
    if not files:
        return []
    with files[0].open(encoding="utf-8", newline="") as stream:
        return [{key.lower(): value for key, value in row.items()} for row in csv.DictReader(stream)]


def slow_import(folder: Path, source_first: bool = False) -> list[tuple]:
    """The MEDS rows of a CDM of CSV files without oddities, sorted as MEDS asks for."""
    concepts = {row["concept_id"]: row for row in read_rows(folder, "concept")}
    born: dict[int, datetime] = {}
    found: list[tuple] = []

    def code_of(row: dict[str, str], stem: str, unmapped: str) -> tuple[str | None, str | None]:
        ids = [row.get(f"{stem}_concept_id", ""), row.get(f"{stem}_source_concept_id", "")]
        known = [concepts.get(i) if i not in ("", "0") else None for i in ids]
        source = known[1]
        chosen = next((c for c in (reversed(known) if source_first else known) if c), None)
        value = row.get(f"{stem}_source_value") or None
        if stem in ("visit", "visit_detail"):
            value = None
        if chosen is None:
            return (f"UNMAPPED/{unmapped}/{value}" if value else None), None
        code = f"{chosen['vocabulary_id']}/{chosen['concept_code']}"
        said = f"{source['vocabulary_id']}/{source['concept_code']}" if source else None
        if said is not None and said != code:
            return code, said
        return code, value if value != chosen["concept_code"] else None

    def time_of(row: dict[str, str], stem: str | None) -> datetime | None:
        text = stem and (row.get(f"{stem}_datetime") or row.get(f"{stem}_date"))
        return datetime.fromisoformat(text) if text else None

    for row in read_rows(folder, "person"):
        person = int(row["person_id"])
        born[person] = time_of(row, "birth") or datetime(
            int(row["year_of_birth"]), int(row["month_of_birth"] or 1), int(row["day_of_birth"] or 1)
        )
        for trait in ("gender", "race", "ethnicity"):
            code, said = code_of(row, trait, trait)
            if code:
                found.append(
                    ((person, False, datetime.min, 0), (person, None, code, *[None] * 4, "person", said, None))
                )
        found.append(
            ((person, True, born[person], 0), (person, born[person], "MEDS_BIRTH", *[None] * 4, "person", None, None))
        )

    for rank, (name, (stem, start_stem, end_stem)) in enumerate(STARTS.items(), 1):
        for row in read_rows(folder, name):
            person, start, end = int(row["person_id"]), time_of(row, start_stem), time_of(row, end_stem)
            if person not in born or start is None:
                continue
            assert start >= born[person] - timedelta(days=30)
            if end is not None and end < start:
                only_day = end.date() == start.date() and end.time() == datetime.min.time()
                end = end.replace(hour=23, minute=59) if only_day else None
            start = max(start, born[person])
            code, said = code_of(row, stem, name)
            if name.startswith("visit"):
                code = code or f"UNMAPPED/{name}"
            if code is None:
                continue
            prefix = "VISIT_DETAIL//" if name == "visit_detail" else ""
            visit = int(row.get("visit_occurrence_id") or 0) or None
            number = text = unit = None
            if name in ("measurement", "observation"):
                number = float(row["value_as_number"]) if row.get("value_as_number") else None
                concept = concepts.get(row.get("value_as_concept_id", ""), {}).get("concept_name")
                string, source = row.get("value_as_string") or None, row.get("value_source_value") or None
                if number is None:
                    text = concept or string or source
                else:
                    begun = (source or "").replace("≤", "<=").replace("≥", ">=")
                    sign = next((s for s in ("<=", ">=", "<", ">") if begun.startswith(s)), None)
                    words = [s for s in (string, source) if s and not any(c.isdigit() for c in s)]
                    text = SIGNS.get(row.get("operator_concept_id", "")) or sign or concept or next(iter(words), None)
                    unit = concepts.get(row.get("unit_concept_id", ""), {}).get("concept_code") or row.get(
                        "unit_source_value"
                    )
            key = (person, True, start, rank)
            found.append((key, (person, start, prefix + code, number, text, unit or None, visit, name, said, end)))
            if name.startswith("visit") and end is not None:
                late = 100 if name == "visit_occurrence" else 99
                row_of_end = (person, end, f"{prefix}{code}//END", None, None, None, visit, name, None, None)
                found.append(((person, True, end, late), row_of_end))

    for row in read_rows(folder, "death"):
        person, time = int(row["person_id"]), time_of(row, "death")
        if person in born and time is not None:
            code, said = code_of(row, "cause", "death")
            if code:
                found.append(((person, True, time, 101), (person, time, code, *[None] * 4, "death", said, None)))
            found.append(((person, True, time, 102), (person, time, "MEDS_DEATH", *[None] * 4, "death", None, None)))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]
