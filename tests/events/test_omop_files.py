"""Which files of a CDM's folder are read, in which forms; and that none is left out without a word."""

import csv
import gzip

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omop_by_hand import SMALL_MEDS, small_cdm, write_cdm, write_csv, write_parquet

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.events.omop.convert import import_omop
from ehrctx.events.omop.read import find_cdm
from ehrctx.events.omop.rows import SCHEMA
from ehrctx.study import HashSplits, OmopOptions

SPLITS = HashSplits(hash=(0.5, 0.2, 0.3))


@pytest.fixture
def cdm(tmp_path):
    return write_cdm(tmp_path / "cdm", small_cdm())


@pytest.fixture
def rows_of(tmp_path):
    """A function that imports a CDM and returns its events, in order."""

    def imported(folder, **options):
        import_omop(folder, tmp_path / "meds", OmopOptions(**options), SPLITS)
        events = pl.concat([pl.read_parquet(f) for f in (tmp_path / "meds" / "data").iterdir()])
        assert events.schema == SCHEMA
        rows = events.sort("subject_id", maintain_order=True).rows()
        return [(*row[:3], None if row[3] is None else round(row[3], 5), *row[4:]) for row in rows]

    return imported


def split_measurement(cdm, *names, write=write_csv):
    """The measurements in as many files as there are names, half of the columns in another order."""
    rows = small_cdm()["measurement"]
    (cdm / "measurement.csv").unlink()
    share = -(-len(rows) // len(names))
    for i, name in enumerate(names):
        part = rows[i * share : (i + 1) * share]
        (cdm / name).parent.mkdir(exist_ok=True)
        write(cdm / name, [dict(reversed(row.items())) for row in part] if i % 2 else part)


PARTS = [
    ("measurement_000000000000.csv", "measurement_000000000001.csv"),
    ("measurement-00000-of-00003.csv.gz", "measurement-00001-of-00003.csv.gz", "measurement-00002-of-00003.csv.gz"),
    ("measurement-1-of-2.csv", "measurement-2-of-2.csv"),
    ("MEASUREMENT_0.CSV", "Measurement_1.csv", "measurement_2.CSV"),
    ("measurement0.csv", "measurement1.csv"),
    ("measurement_part_1.csv", "measurement_part_2.csv"),
    tuple(f"measurement_{i}.csv" for i in (1, 2, 3, 4, 5, 10)),
    ("measurement.tsv",),
    ("MEASUREMENT.TXT",),
    ("measurement.txt.gz",),
    ("measurement_0.tsv", "measurement_1.tsv"),
    ("measurement/part-00000-a1b2.csv", "measurement/part-00001-a1b2.csv"),
    ("measurement/year=2019/part-0.csv", "measurement/year=2020/part-0.csv"),
]


@pytest.mark.parametrize("names", PARTS, ids=lambda names: names[0])
def test_parts_and_other_names(cdm, rows_of, names, capsys):
    for name in names:
        (cdm / name).parent.mkdir(parents=True, exist_ok=True)
    split_measurement(cdm, *names)
    assert rows_of(cdm) == SMALL_MEDS
    assert "not read" not in capsys.readouterr().err
    inputs = read_manifest(cdm.parent / "meds", "events")["inputs"]
    assert set(names) < set(inputs)
    assert len(inputs) == sum(1 for path in cdm.rglob("*") if path.is_file())


@pytest.mark.parametrize("names", [("measurement.0.parquet", "measurement.1.parquet"), ("MEASUREMENT.PARQUET",)])
def test_parts_of_parquet(cdm, rows_of, names):
    split_measurement(cdm, *names, write=write_parquet)
    assert rows_of(cdm) == SMALL_MEDS


def test_parts_come_in_the_order_of_their_numbers(cdm):
    split_measurement(cdm, *(f"measurement_{i}.csv" for i in (9, 10, 11, 100, 2, 1)))
    files = find_cdm(cdm).tables["measurement"].files
    assert [file.name for file in files] == [f"measurement_{i}.csv" for i in (1, 2, 9, 10, 11, 100)]


TWICE = {
    "a file and a part": "measurement_000.csv",
    "a file and a folder": "measurement/0.csv",
    "two suffixes": "measurement.parquet",
    "two cases": "MEASUREMENT.csv",
    "text and comma": "measurement.txt",
}


@pytest.mark.parametrize("name", TWICE.values(), ids=TWICE)
def test_two_forms_of_a_table_are_refused(cdm, name):
    (cdm / name).parent.mkdir(exist_ok=True)
    (cdm / name).write_bytes((cdm / "measurement.csv").read_bytes())
    with pytest.raises(InputError, match=r"holds the table measurement twice: .* and .*\. Remove one"):
        find_cdm(cdm)


@pytest.mark.parametrize(
    "names",
    [
        ("measurement_0.csv", "measurement_1.csv.gz"),
        ("measurement_1.csv", "measurement_01.csv"),
        ("measurement_1.csv", "measurement-1.csv"),
    ],
)
def test_parts_that_are_there_twice_are_refused(cdm, names):
    split_measurement(cdm, *names)
    with pytest.raises(InputError, match="holds the table measurement twice"):
        find_cdm(cdm)


def test_parts_that_are_missing(cdm, rows_of, capsys):
    split_measurement(cdm, "measurement-00000-of-00003.csv", "measurement-00002-of-00003.csv")
    with pytest.raises(InputError, match=r"the table measurement has 3 parts, of which 2 are there\. Copy all"):
        find_cdm(cdm)
    for name in ("00000", "00002"):
        (cdm / f"measurement-{name}-of-00003.csv").rename(cdm / f"measurement_{name}.csv")
    assert rows_of(cdm) == SMALL_MEDS
    assert "among the numbers of the parts of measurement some are missing" in capsys.readouterr().err


def test_a_part_without_a_column(cdm, rows_of, capsys):
    split_measurement(cdm, "measurement_0.csv", "measurement_1.csv")
    part = cdm / "measurement_0.csv"
    whole = part.read_text()
    part.write_text(whole.replace("unit_source_value", "unit_as_text"))
    assert rows_of(cdm) != SMALL_MEDS
    assert "measurement_0.csv has not unit_source_value, which other parts of the table have" in capsys.readouterr().err
    part.write_text(whole.replace("measurement_concept_id", "concept"))
    with pytest.raises(InputError, match=r"measurement_0\.csv: the column 'measurement_concept_id' is missing"):
        rows_of(cdm)


def test_every_file_is_accounted_for(cdm, run, tmp_path):
    for name in (
        "note.csv", "NOTE_NLP.csv.gz", "drug_era_000.csv", "cost.parquet", "drug_strength.csv", "vocabulary/0.csv",
        "concept_synonym.csv", "README.md", "readme.txt", "cpt4.jar", "._person.csv", "_SUCCESS",
    ):  # fmt: skip
        (cdm / name).parent.mkdir(exist_ok=True)
        (cdm / name).write_bytes(b"what no reader opens \xff")
    unknown = [
        "measurement (1).csv", "measurement.csv.zip", "measurement_old.csv", "omop.person.csv", "results/t1.csv",
    ]  # fmt: skip
    for name in unknown:
        (cdm / name).parent.mkdir(exist_ok=True)
        (cdm / name).write_bytes(b"what no reader opens \xff")
    code, _, said = run("import", "omop", cdm, "--out", tmp_path / "meds")
    assert code == 0
    warning = next(line for line in said.splitlines() if "not read" in line)
    assert warning.startswith(f"warning: {cdm}: not read: {', '.join(unknown)}. Name tables as measurement.csv")
    assert "ignored: " not in said
    facts = read_manifest(tmp_path / "meds", "events")["facts"]
    assert facts["files"] == {"read": 14, "ignored": 12, "not_read": unknown}
    code, _, said = run("import", "omop", cdm, "--out", tmp_path / "meds", "--verbose")
    assert "ignored: NOTE_NLP.csv.gz (a table that gives no events)\n" in said
    assert "ignored: ._person.csv (hidden, or left by a tool beside its data)\n" in said
    assert said.count("ignored: ") == 12


def test_a_folder_that_is_a_link_is_followed(cdm, rows_of, tmp_path):
    split_measurement(cdm, "measurement/0.csv")
    (cdm / "measurement").rename(tmp_path / "elsewhere")
    (cdm / "measurement").symlink_to(tmp_path / "elsewhere")
    assert rows_of(cdm) == SMALL_MEDS


def quoted_where_needed(file, rows, separator):
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(["" if value is None else value for value in row.values()] for row in rows)


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_texts_with_quotes(cdm, rows_of, separator):
    """As any writer of CSV has them by default: the same with each separator."""
    tables = small_cdm()
    tables["observation"][0] |= {"value_as_string": 'she said "no"', "observation_source_value": "height 5'11\""}
    tables["measurement"][4]["measurement_source_value"] = f'"a" {separator} b'
    for name, rows in tables.items():
        quoted_where_needed(cdm / f"{name}.csv", rows, separator)
    rows = rows_of(cdm)
    assert len(rows) == len(SMALL_MEDS)
    assert {(row[4], row[8]) for row in rows if row[2] == "SNOMED/365981007"} == {('she said "no"', "height 5'11\"")}
    assert {row[2] for row in rows if row[2].startswith("UNMAPPED/measurement")} == {
        f'UNMAPPED/measurement/"a" {separator} b'.replace("\t", " ")
    }


@pytest.mark.parametrize("name", ['"Bamboo" spine', '"stray', "5'11\" tall", '"'])
def test_names_of_a_vocabulary_without_quotes(cdm, rows_of, tmp_path, name):
    """As Athena ships it: tabs, and quotation marks are characters, even where only one table of three has some."""
    tables = small_cdm()
    row = next(row for row in tables["concept"] if row["concept_code"] == "399208008")
    row["concept_name"] = name
    for table in ("concept", "concept_ancestor", "concept_relationship"):
        cells = [list(tables[table][0]), *(row.values() for row in tables[table])]
        lines = ["\t".join("" if cell is None else str(cell) for cell in row) for row in cells]
        (cdm / f"{table}.csv").write_text("\n".join(lines) + "\n")
    assert rows_of(cdm) == SMALL_MEDS
    told = dict(pl.read_parquet(tmp_path / "meds/metadata/codes.parquet").select("code", "description").rows())
    assert told["SNOMED/399208008"] == name
    assert len(told) == len({row[2] for row in SMALL_MEDS} | {"SNOMED/38341003", "SNOMED/49601007", "ICD10CM/I10"})


def test_quotes_that_can_be_read_in_two_ways_are_refused_by_row(cdm):
    file = cdm / "observation.csv"
    header, _, row = file.read_text().partition("\n")
    plain = row.replace(SMOKED_AS_WRITTEN, "{}")
    file.write_text(header + "\n" + plain.format('"she said ""no"""') + plain.format('"so" she said'))
    with pytest.raises(InputError, match=r"observation\.csv, row 2: a field begins with a quotation mark"):
        import_omop(cdm, cdm.parent / "meds", OmopOptions(), SPLITS)


SMOKED_AS_WRITTEN = '"Never, ""ever""\nsmoked"'
ENCODED = {"utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32": "UTF-32", "utf-32-le": "UTF-32"}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize("name", ["person", "concept", "measurement", "concept_relationship"])
def test_text_in_another_encoding(cdm, name, encoding, packed):
    file = cdm / f"{name}.csv"
    text = file.read_text().encode(encoding)
    file.write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(InputError) as caught:
        import_omop(cdm, cdm.parent / "meds", OmopOptions(), SPLITS)
    assert str(caught.value) == (
        f"{file} is not UTF-8 text, it looks like {ENCODED[encoding]}. Write the file as UTF-8."
    )


def test_latin_1_in_the_header_and_in_a_late_row(cdm):
    file = cdm / "death.csv"
    text = file.read_text()
    file.write_bytes(text.replace("cause_source_value", "größe", 1).encode("latin-1"))
    with pytest.raises(InputError, match=r"death\.csv: its first line is not UTF-8 text"):
        import_omop(cdm, cdm.parent / "meds", OmopOptions(), SPLITS)
    file.write_bytes(text.encode() + "1,2022-01-01,,0,Müller,0\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"death\.csv, row 3: cause_source_value is not UTF-8 text"):
        import_omop(cdm, cdm.parent / "meds", OmopOptions(), SPLITS)


def change_bytes(cdm, **changes):
    for name, change in changes.items():
        file = cdm / f"{name}.csv"
        file.write_bytes(change(file.read_bytes()))


FORMS = {
    "all gzipped, in capital letters": lambda cdm: [
        (file.with_name(file.name.upper() + ".GZ").write_bytes(gzip.compress(file.read_bytes())), file.unlink())
        for file in list(cdm.iterdir())
    ],
    "gzipped without the suffix": lambda cdm: change_bytes(cdm, person=gzip.compress, measurement=gzip.compress),
    "the suffix .gz without gzip": lambda cdm: (cdm / "person.csv").rename(cdm / "person.csv.gz"),
    "several members in one gzip file": lambda cdm: change_bytes(
        cdm, measurement=lambda text: gzip.compress(text[:200]) + gzip.compress(text[200:])
    ),
    "CR LF": lambda cdm: change_bytes(cdm, measurement=lambda text: text.replace(b"\n", b"\r\n")),
    "a byte order mark": lambda cdm: change_bytes(cdm, **dict.fromkeys(("person", "concept"), b"\xef\xbb\xbf".__add__)),
    "blank lines at the end": lambda cdm: change_bytes(cdm, measurement=lambda text: text + b"\n\r\n\n"),
    "no line's end at the end": lambda cdm: change_bytes(cdm, measurement=lambda text: text.rstrip()),
    "a separator at the end of each line": lambda cdm: change_bytes(
        cdm, measurement=lambda text: text.replace(b"\r\n", b",\r\n")
    ),
    "spaces around the names of columns": lambda cdm: change_bytes(
        cdm, death=lambda text: text.replace(b"person_id", b" Person_ID ", 1)
    ),
    "a table with a header alone": lambda cdm: (cdm / "specimen.csv").write_text("specimen_id\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(cdm, rows_of, form):
    FORMS[form](cdm)
    assert rows_of(cdm) == SMALL_MEDS


REFUSED = {
    "an empty file": ("death", lambda _: b"", r"death\.csv is empty\. Write it with its header, or remove it\."),
    "a byte order mark alone": ("death", lambda _: b"\xef\xbb\xbf", r"death\.csv is empty"),
    "an empty gzip file": ("death", lambda _: gzip.compress(b""), r"death\.csv is empty"),
    "a gzip file that is cut off": ("concept", lambda t: gzip.compress(t)[:-30], r"concept\.csv .* cut off"),
    "a gzip file without its end": ("concept", lambda t: gzip.compress(t)[:-4], r"concept\.csv .* cut off"),
    "a ZIP archive": ("death", lambda t: b"PK\x03\x04" + t, r"death\.csv is not text but a ZIP archive or a spread"),
    "parquet": ("death", lambda t: b"PAR1" + t, r"death\.csv is not text but parquet\. Give it the suffix \.parquet"),
    "a separator at the end of rows alone": (
        "death", lambda t: t.replace(b"\r\n", b",\r\n").replace(b"_id,\r", b"_id\r", 1),
        r"death\.csv, row 1: it has 7 fields where the header has 6",
    ),
    "lines of old Macs": ("death", lambda t: t.replace(b"\r\n", b"\r"), r"death\.csv: its lines end as on old Macs"),
    "a column twice": ("death", lambda t: t.replace(b"cause_source_value", b"death_date"), r"'death_date' is there tw"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_forms_that_are_refused(cdm, case):
    name, change, sentence = REFUSED[case]
    change_bytes(cdm, **{name: change})
    with pytest.raises(InputError, match=sentence):
        import_omop(cdm, cdm.parent / "meds", OmopOptions(), SPLITS)
    assert [path.name for path in cdm.parent.iterdir()] == ["cdm"]


def typed_measurement(cdm, **columns):
    """The measurements as parquet, with columns of the given types."""
    (cdm / "measurement.csv").unlink()
    write_parquet(cdm / "measurement.parquet", small_cdm()["measurement"])
    table = pq.read_table(cdm / "measurement.parquet")
    for name, change in columns.items():
        at = table.schema.get_field_index(name)
        changed = change(table.column(name)) if at >= 0 else change(table.column(0))
        table = table.set_column(at, name, changed) if at >= 0 else table.append_column(name, changed)
    return table


TYPES = {
    "times in INT96": {},
    "ids as decimal256": {"person_id": lambda c: c.cast(pa.decimal256(76, 0))},
    "numbers as decimal256": {"value_as_number": lambda c: c.cast(pa.decimal256(60, 5))},
    "another column of decimal256": {"cost": lambda c: c.cast(pa.decimal256(76, 20))},
    "another column of lists": {"tags": lambda c: pa.array([[1]] * len(c))},
    "texts as a dictionary": {"unit_source_value": lambda c: c.cast(pa.string()).dictionary_encode()},
    "ids as a dictionary": {"person_id": lambda c: c.dictionary_encode()},
    "times with a zone": {"measurement_datetime": lambda c: c.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))},
    "days as date64": {"measurement_date": lambda c: c.cast(pa.date64())},
    "days as times": {"measurement_date": lambda c: c.cast(pa.timestamp("ms"))},
    "ids as numbers": {"measurement_concept_id": lambda c: c.cast(pa.float64())},
    "texts as bytes": {"measurement_source_value": lambda c: c.cast(pa.binary())},
}


@pytest.mark.parametrize("case", TYPES)
def test_types_of_parquet(cdm, rows_of, case):
    table = typed_measurement(cdm, **TYPES[case])
    pq.write_table(table, cdm / "measurement.parquet", use_deprecated_int96_timestamps=case == "times in INT96")
    assert rows_of(cdm) == SMALL_MEDS


def test_a_time_in_int96_beyond_nanoseconds(cdm, rows_of):
    """They hold days; in nanoseconds, what lies after 2262 comes out as centuries before."""
    times = pa.array(["2300-01-06 06:00:00"] * 6).cast(pa.timestamp("us"))
    table = typed_measurement(cdm, measurement_datetime=lambda _: times)
    pq.write_table(table, cdm / "measurement.parquet", use_deprecated_int96_timestamps=True)
    assert {row[1].year for row in rows_of(cdm) if row[7] == "measurement"} == {2300}


def test_a_column_of_lists_that_is_needed_is_refused(cdm, rows_of):
    table = typed_measurement(cdm, unit_source_value=lambda c: pa.array([["mg"]] * len(c)))
    pq.write_table(table, cdm / "measurement.parquet")
    with pytest.raises(InputError, match=r"measurement\.parquet: the column 'unit_source_value' is list<.*> *, expect"):
        rows_of(cdm)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"death\.parquet is empty"),
        (b"a,b\n1,2\n", r"death\.parquet is not a readable parquet file: its content is none"),
    ],
)
def test_parquet_that_is_none(cdm, rows_of, content, sentence):
    (cdm / "death.csv").unlink()
    (cdm / "death.parquet").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        rows_of(cdm)
