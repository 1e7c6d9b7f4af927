"""A batch of one table's rows -> MEDS rows: codes, values, times, and what is left out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.batches import Batch
from ehrctx.events.columns import datetimes, integers, numbers_or_texts, texts
from ehrctx.events.limits import ENDING, IMPLAUSIBLE, is_implausible, is_placeholder_end, usable_codes
from ehrctx.events.meds import BEFORE_BIRTH, BIRTH
from ehrctx.events.omop.concepts import Concepts
from ehrctx.events.omop.people import BIRTH_COLUMNS, TRAIT_COLUMNS, People, births_of
from ehrctx.events.omop.tables import OPERATORS, RANK, TRAITS, EventTable, Kind
from ehrctx.events.units import is_missing_unit
from ehrctx.events.writer import COLUMNS

SCHEMA: dict[str, Any] = {**COLUMNS, "source_code": pl.String, "end": pl.Datetime("us")}
DEATH, END = "MEDS_DEATH", ENDING
UNMAPPED = "UNMAPPED"
LARGEST = float(np.finfo(np.float32).max)
MOST_TEXTS, FEW_TEXTS = 0.01, 10  # a share of value_as_number that may be texts, and how many always may
COMPARATOR = r"^(<=|>=|<|>|≤|≥)"
LEFT_OUT = ("no_person", "no_time", "implausible_time", "before_birth")  # the first reason counts
VALUE_COLUMNS = (
    "value_as_number", "value_as_concept_id", "value_as_string", "value_source_value", "operator_concept_id",
    "unit_concept_id", "unit_source_value",
)  # fmt: skip


@dataclass
class Used:
    """What the codes of the events stand for, as metadata/codes.parquet has to say."""

    concepts: set[tuple[str, int]] = field(default_factory=set)  # prefix of the code, concept_id
    ends: set[tuple[str, int]] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    care_sites: set[int] = field(default_factory=set)


@dataclass
class Numbers:
    """How many cells of one table's value_as_number are filled, and how many of these are no numbers."""

    filled: int = 0
    texts: int = 0
    first: str = ""  # where the first of the latter is

    def refuse(self) -> None:
        """Raises InputError where so many are no numbers that the column must be written wrongly."""
        if self.texts > FEW_TEXTS and self.texts > MOST_TEXTS * self.filled:
            raise InputError(
                f"{self.first}: value_as_number is not a number, here and in {self.texts / self.filled:.1%} of the "
                f"rows that have one (at most {FEW_TEXTS} of them, or {MOST_TEXTS:.0%}, may be texts). Write numbers "
                f"with a point and without unit, and put texts into value_as_string."
            )


@dataclass(frozen=True)
class Importer:
    """What all batches share."""

    people: People
    concepts: Concepts
    codes: Literal["standard", "source"]
    before_birth: Literal["refuse", "drop"]
    implausible_time: Literal["refuse", "drop"]
    used: Used
    numbers: dict[str, Numbers] = field(default_factory=dict)  # by table


def _meds(rows: pl.DataFrame, table: str) -> pl.DataFrame:
    """`rows` of one table with all columns of SCHEMA, in its order; nulls where they have none."""
    filled = {name: pl.lit(None, dtype) for name, dtype in SCHEMA.items() if name not in rows.columns}
    return rows.with_columns(**(filled | {"table": pl.lit(table)})).select(
        pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
    )


def required_columns(table: EventTable) -> tuple[str, ...]:
    ids = {"visit_occurrence": ("visit_occurrence_id",)}.get(table.name, ())
    return ("person_id", *ids, *(() if table.kind is Kind.DEATH else (table.concept,)))


def optional_columns(table: EventTable) -> tuple[str, ...]:
    times = [f"{stem}_{form}" for stem in (table.start, table.end) if stem for form in ("datetime", "date")]
    values = VALUE_COLUMNS if table.valued else ()
    more = ("care_site_id",) if table.placed else ()
    return (table.concept, table.source_concept, table.source_value, "visit_occurrence_id", *times, *values, *more)


def _time(batch: Batch, stem: str, required: bool) -> pl.Series:
    """`<stem>_datetime`, and `<stem>_date` where that is empty, datetime[us]."""
    forms = (f"{stem}_datetime", f"{stem}_date")
    if required and not set(forms) & set(batch.rows.columns):
        raise InputError(
            f"{batch.file}: the columns {forms[0]!r} and {forms[1]!r} are missing. Export the table with one of them."
        )
    exact = datetimes(batch, forms[0])
    if forms[1] not in batch.rows.columns:
        return exact
    needed = batch.rows.select(pl.when(exact.is_null()).then(forms[1]).alias(forms[1]))
    return exact.zip_with(exact.is_not_null(), datetimes(Batch(batch.file, batch.first, needed), forms[1]))


def _ids(batch: Batch, column: str) -> pl.Series:
    """Ids, null where they are 0, which stands for none."""
    ids = integers(batch, column)
    return ids.set(ids == 0, None)


def _codes(
    importer: Importer, batch: Batch, columns: tuple[str, str, str], unmapped: pl.Expr, prefix: str
) -> pl.DataFrame:
    """(concept_id, code, source_code, unknown, unmapped, altered) of each row.

    `columns` are those of the standard concept, of the source concept and of the source value. The code is that of the
    first concept which CONCEPT knows, the standard one before the source one or the other way round, else `unmapped`.
    """
    standard, source = (_ids(batch, column) for column in columns[:2])
    known = [importer.concepts.of(standard), importer.concepts.of(source)]
    first, second = known if importer.codes == "standard" else known[::-1]
    rows = pl.concat(
        [
            first.select(pl.all().name.prefix("1")),
            second.select(pl.all().name.prefix("2")),
            known[1].select(pl.col("code").alias("own")),
        ],
        how="horizontal",
    ).with_columns(
        value=texts(batch, columns[2]),
        missing=(standard.is_not_null() & known[0]["code"].is_null())
        | (source.is_not_null() & known[1]["code"].is_null()),
    )
    concept, bare = pl.coalesce("1code", "2code"), pl.coalesce("1bare", "2bare")
    # what the source says, if the code does not say it already
    said = (
        pl.when(pl.col("own") != concept)
        .then("own")
        .when(concept.is_not_null() & (pl.col("value") != bare))
        .then("value")
    )
    coded = rows.select(
        concept_id=pl.coalesce("1concept_id", "2concept_id"),
        code=pl.coalesce(pl.lit(prefix) + concept, unmapped),
        source_code=said,
        unknown=pl.col("missing"),
        unmapped=concept.is_null(),
    )
    code, altered = usable_codes(coded["code"])
    return coded.with_columns(code=code, altered=altered)


def _values(importer: Importer, batch: Batch, table: str, counts: Counter[str]) -> pl.DataFrame:
    """(numeric_value, text_value, unit) of each row."""
    stated = _numbers(importer, batch, table)
    number = stated["number"]
    beyond = (number.abs() > LARGEST).fill_null(False)
    counts["number_beyond_float32"] += int(beyond.sum())
    counts["number_as_text"] += stated["text"].count()
    counts["number_with_comparator"] += stated["comparator"].count()
    rows = pl.DataFrame(
        {
            "number": number.set(beyond, None),
            "no_number": stated["text"],
            "comparator": stated["comparator"],
            "concept": importer.concepts.of(_ids(batch, "value_as_concept_id"))["name"],
            "string": texts(batch, "value_as_string"),
            "source": texts(batch, "value_source_value"),
            "operator": integers(batch, "operator_concept_id"),
            "unit_code": importer.concepts.of(_ids(batch, "unit_concept_id"))["bare"],
            "unit_source": texts(batch, "unit_source_value"),
        }
    )
    operator = pl.col("operator").replace_strict(OPERATORS, default=None, return_dtype=pl.String)
    in_source = pl.col("source").str.extract(COMPARATOR).replace({"≤": "<=", "≥": ">="})

    def in_words(column: str) -> pl.Expr:
        return pl.when(~pl.col(column).str.contains(r"\d")).then(column)

    beside_number = pl.coalesce(operator, "comparator", in_source, "concept", in_words("string"), in_words("source"))
    without_number = pl.coalesce("no_number", "concept", "string", "source")
    has_number = pl.col("number").is_not_null()
    unit_source = pl.when(~is_missing_unit(pl.col("unit_source"))).then("unit_source")
    return rows.select(
        numeric_value="number",
        text_value=pl.when(has_number).then(beside_number).otherwise(without_number),
        unit=pl.when(has_number).then(pl.coalesce("unit_code", unit_source)),
    )


def _numbers(importer: Importer, batch: Batch, table: str) -> pl.DataFrame:
    """What value_as_number states, noted for `Numbers.refuse`."""
    stated = numbers_or_texts(batch, "value_as_number")
    noted = importer.numbers.setdefault(table, Numbers())
    is_text = stated["text"].is_not_null()
    if is_text.any() and not noted.texts:
        noted.first = f"{batch.file}, row {batch.first + int(is_text.arg_true()[0]):,}"
    noted.texts += int(is_text.sum())
    noted.filled += int((is_text | stated["number"].is_not_null()).sum())
    return stated


def _checked(importer: Importer, batch: Batch, table: EventTable, counts: Counter[str]) -> pl.DataFrame:
    """(subject_id, time, end, keep) of each row; what is not kept is counted by reason."""
    person = integers(batch, "person_id")
    at = importer.people.index.positions(person)
    start = _time(batch, table.start, required=True).alias("start")
    end = _time(batch, table.end, required=False) if table.end else pl.Series([None] * len(start), dtype=start.dtype)
    rows = pl.DataFrame(
        {"subject_id": person, "at": at, "start": start, "end": end, "birth": importer.people.births.gather(at)}
    )
    # a condition may last for decades, a stay does not
    is_stay = table.kind is Kind.VISIT
    placeholder = is_placeholder_end(pl.col("start"), pl.col("end")) if is_stay else is_implausible(pl.col("end"))
    rows = (
        rows.with_columns(
            no_person=pl.col("at").is_null(),
            no_time=pl.col("at").is_not_null() & pl.col("start").is_null(),
            implausible_time=pl.col("at").is_not_null() & is_implausible(pl.col("start")),
            placeholder=placeholder,
            no_end=pl.col("end").is_null(),
        )
        .with_columns(
            end=pl.when(~pl.col("placeholder")).then("end"),
            before_birth=(
                pl.col("at").is_not_null()
                & ~pl.col("implausible_time")
                & (pl.col("start") < pl.col("birth") - BEFORE_BIRTH)
            ).fill_null(False),
            clamped=(pl.col("start") < pl.col("birth")).fill_null(False),
            # an end of which only the day is known, on the day of the start
            late=(pl.col("end") < pl.col("start")) & (pl.col("end") == pl.col("start").dt.truncate("1d")),
        )
        .with_columns(
            keep=~pl.any_horizontal(LEFT_OUT),
            end=pl.when("late").then(pl.col("end").dt.offset_by("23h59m")).otherwise("end"),
        )
    )
    # a start in the last minute of a day is its end
    rows = rows.with_columns(end=pl.when("late").then(pl.max_horizontal("start", "end")).otherwise("end"))
    rows = rows.with_columns(backwards=(pl.col("end") < pl.col("start")).fill_null(False))
    if importer.implausible_time == "refuse":
        batch.refuse(rows["implausible_time"], f"{table.start}_date or {table.start}_datetime {IMPLAUSIBLE}")
    if importer.before_birth == "refuse":
        batch.refuse(
            rows["before_birth"],
            f"the event is more than {BEFORE_BIRTH.days} days before the person's birth. Correct one of the two, or "
            f"drop such rows with --before-birth drop.",
        )
    for reason in LEFT_OUT:
        counts[f"left_out.{reason}"] += int(rows[reason].sum())
    kept = rows.filter("keep")
    counts["clamped_to_birth"] += int(kept["clamped"].sum())
    if table.end:
        counts["end_before_start"] += int(kept["backwards"].sum())
        counts["end_is_placeholder"] += int(kept["placeholder"].sum())
        if table.kind is Kind.VISIT:
            counts["without_end"] += int(kept["no_end"].sum())
    time = pl.when("clamped").then("birth").otherwise("start")
    ended = pl.when(~pl.col("backwards")).then(pl.max_horizontal("end", time))
    return rows.select("subject_id", "at", "keep", time=time, end=pl.when(pl.col("end").is_not_null()).then(ended))


def _remember(importer: Importer, coded: pl.DataFrame, prefix: str) -> None:
    """Notes what the codes of these rows stand for."""
    used = coded["concept_id"].drop_nulls().unique().to_list()
    importer.used.concepts.update((prefix, concept) for concept in used)
    importer.used.others.update(coded.filter("unmapped")["code"].unique())


def _read(importer: Importer, table: EventTable, batch: Batch, counts: Counter[str]) -> pl.DataFrame:
    """The rows that are kept: subject_id, at (position in PERSON), time, end, concept_id, code (null where there is
    none), source_code, unmapped, visit_id; numeric_value, text_value, unit; care_site."""
    checked = _checked(importer, batch, table, counts)
    if table.kind is Kind.VISIT:  # a visit's source value often is its own number: never a code
        unmapped, value = pl.lit(f"{table.prefix}{UNMAPPED}/{table.name}"), ""
    else:
        unmapped, value = pl.lit(f"{UNMAPPED}/{table.name}/") + pl.col("value"), table.source_value
    codes = _codes(importer, batch, (table.concept, table.source_concept, value), unmapped, table.prefix)
    values = [_values(importer, batch, table.name, counts)] if table.valued else []
    places = {"visit_id": _ids(batch, "visit_occurrence_id"), "care_site": _ids(batch, "care_site_id")}
    rows = pl.concat([checked, codes, *values, pl.DataFrame(places)], how="horizontal").filter("keep")
    counts["unknown_concept"] += int(rows["unknown"].sum())
    return rows


def _ends(importer: Importer, table: EventTable, coded: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One event at the end of each visit that has one."""
    ended = coded.filter(pl.col("end").is_not_null())
    importer.used.ends.update((table.prefix, concept) for concept in ended["concept_id"].drop_nulls().unique())
    importer.used.others.update(ended.filter("unmapped")["code"].unique() + END)
    ends = ended.select("at", "subject_id", "visit_id", time="end", code=pl.col("code") + END)
    return ends, RANK[f"{table.name}{END}"]


def _care_sites(importer: Importer, rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """One event for each part of a visit whose care site is told."""
    placed = rows.filter(pl.col("care_site").is_not_null())
    importer.used.care_sites.update(placed["care_site"].unique())
    code = pl.format("CARE_SITE/{}", "care_site")
    return placed.select("at", "subject_id", "time", "visit_id", code=code), RANK["care_site"]


def _deaths(importer: Importer, rows: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    if rows.height:
        importer.used.others.add(DEATH)
    return rows.select("at", "subject_id", "time", code=pl.lit(DEATH)), RANK["death"]


def events_of(
    importer: Importer, table: EventTable, batch: Batch, counts: Counter[str]
) -> list[tuple[pl.DataFrame, int]]:
    """Frames of MEDS rows (columns of SCHEMA), each with its rank within one time; `counts` is added to."""
    rows = _read(importer, table, batch, counts)
    coded = rows.filter(pl.col("code").is_not_null())
    _remember(importer, coded, table.prefix)
    if table.kind is Kind.DEATH:
        found = [(coded, RANK["cause"]), _deaths(importer, rows)]
    else:
        found = [(coded, RANK[table.name])]
        counts["left_out.no_code"] += rows.height - coded.height
    if table.kind is Kind.VISIT:
        found.append(_ends(importer, table, coded))
    if table.placed:
        found.append(_care_sites(importer, rows))
    counts["rows"] += batch.rows.height
    counts["rows_imported"] += rows.height if table.kind is Kind.DEATH else coded.height
    counts["unmapped"] += int(coded["unmapped"].sum())
    counts["code_altered"] += int(coded["altered"].sum())
    counts["events"] += sum(frame.height for frame, _ in found)
    for frame, _ in found:
        importer.people.seen[frame["at"].to_numpy()] = True
    return [(_meds(frame, table.name), rank) for frame, rank in found if frame.height]


def person_columns() -> tuple[str, ...]:
    return (*BIRTH_COLUMNS, *TRAIT_COLUMNS)


def person_events(importer: Importer, batch: Batch, counts: Counter[str]) -> list[tuple[pl.DataFrame, int]]:
    """Static events of what PERSON says of each person, then their births."""
    counts["rows"] += batch.rows.height
    person = integers(batch, "person_id")
    found = []
    for trait in TRAITS:
        columns = (f"{trait}_concept_id", f"{trait}_source_concept_id", f"{trait}_source_value")
        codes = _codes(importer, batch, columns, pl.lit(f"{UNMAPPED}/{trait}/") + pl.col("value"), "")
        rows = codes.with_columns(person.alias("subject_id"))
        counts["unknown_concept"] += int(rows["unknown"].sum())
        counts[f"without_{trait}"] += int(rows["code"].is_null().sum())
        coded = rows.filter(pl.col("code").is_not_null())
        counts["unmapped"] += int(coded["unmapped"].sum())
        counts["code_altered"] += int(coded["altered"].sum())
        _remember(importer, coded, "")
        found.append(coded)
    births = pl.DataFrame({"subject_id": person, "time": births_of(batch)}).drop_nulls("time")
    counts["without_birth"] += len(person) - births.height
    if births.height:
        importer.used.others.add(BIRTH)
    found.append(births.with_columns(code=pl.lit(BIRTH)))
    known = pl.concat([rows["subject_id"] for rows in found]).unique()
    importer.people.seen[importer.people.index.positions(known).to_numpy()] = True
    counts["rows_imported"] += len(known)
    counts["left_out.nothing_known"] += len(person) - len(known)
    frames = [(_meds(rows, "person"), RANK["birth"]) for rows in found if rows.height]
    counts["events"] += sum(frame.height for frame, _ in frames)
    return frames
