"""A tidy MEDS set, changed in one way each: `check`, `split`, `tokenize` and `label` read it right, or all refuse it.

What one stage refuses, `check` names first; and no event is lost without being counted.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mutation import Mutation, assert_right_or_refused
from tidy_meds import (
    CODES,
    FIRST,
    PROFILE,
    SECOND,
    SECRET,
    SPLITS,
    added,
    all_of,
    as_folder,
    cast,
    cut_off,
    file_written,
    link,
    linked,
    moved,
    not_utf8,
    one_file,
    recoded,
    rewritten,
    row_changed,
    shift,
    split_subject,
    table_of_codes,
    write_tidy,
)

from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.splits import subject_splits
from ehrctx.study import Labels
from ehrctx.tasks.label_sets import read_labels, write_labels
from ehrctx.timelines.build import build_timelines
from ehrctx.timelines.lookup import NAMES
from ehrctx.timelines.store import Timelines


def read(folder: Path, out: Path) -> dict[str, Any]:
    """What the stages make of a data set. Raises the InputError of `check`, with which all stages must agree."""
    profile = folder.parent / "profile.yaml"
    dataset = open_dataset(folder)
    warnings: list[str] = []
    summary, violations = check(dataset, load(DatasetProfile, profile), warn=warnings.append)

    def is_refused(stage: Callable[[], Any], written: Path) -> bool:
        try:
            stage()
        except InputError as error:
            refusal = str(error)
        else:
            return False
        assert violations, f"`check` does not name what a stage refuses: {refusal}"
        assert not written.exists()
        return True

    out.mkdir()
    splits, spec = out / "splits.parquet", str(folder.parent / "spec.yaml")
    stages: list[tuple[Callable[[], Any], Path]] = [
        (lambda: subject_splits(dataset, None).write_parquet(splits), splits),
        (lambda: build_timelines(folder, str(profile), splits, spec, out / "timelines", threads=1), out / "timelines"),
        (lambda: write_labels(folder, str(profile), ["guo_los"], Labels(), out / "labels"), out / "labels"),
    ]
    refusals = [is_refused(*stage) for stage in stages]
    if violations:
        assert any(refusals), f"no stage refuses what `check` names: {violations[0]}"
        shutil.rmtree(out)  # of stages that do not need what is wrong
        raise InputError(str(violations[0]))
    store = Timelines.open(out / "timelines")
    facts = store.manifest["facts"]
    outcomes = {name: n for name, n in facts["events_by_outcome"].items() if name in NAMES}
    assert summary["events"] == facts["events"] == sum(outcomes.values()), "an event is lost without being counted"
    del summary["files"]
    return {
        "summary": summary,
        "outcomes": {name: n for name, n in outcomes.items() if n},
        "births_too_early": facts["births_too_early"],
        "tokens": np.array(store.tokens).tolist(),
        "seconds": np.array(store.seconds).tolist(),
        "offsets": np.array(store.offsets).tolist(),
        "subjects": [tuple(row) for row in store.subjects.tolist()],
        "labels": read_labels(out / "labels")["guo_los"].rows(),
        "warnings": warnings,
        "unread": [file.relative_to(folder).as_posix() for file in dataset.inventory.unknown],
    }


def differing(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tidy: tidy | changes


def first_birth_unknown(tidy: dict[str, Any]) -> dict[str, Any]:
    """The first subject's clock begins with its first admission, not with its birth."""
    end = tidy["offsets"][1]
    admission = tidy["seconds"][2]  # after the static event and the birth
    seconds = [max(0, second - admission) for second in tidy["seconds"][:end]]
    subject = list(tidy["subjects"][0])
    subject[2:4] = subject[2] + timedelta(seconds=admission), False
    warning = "<10 subjects were born more than 136 years before their last event: their birth, and so their age,"
    return tidy | {
        "seconds": seconds + tidy["seconds"][end:],
        "subjects": [tuple(subject), *tidy["subjects"][1:]],
        "births_too_early": 1,
        "warnings": [f"{warning} counts as unknown.", *tidy["warnings"]],
    }


def shifted(days: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """All times so many days later; nothing else changes."""
    later = timedelta(days=days)

    def expected(tidy: dict[str, Any]) -> dict[str, Any]:
        subjects = [(*row[:2], row[2] + later, *row[3:]) for row in tidy["subjects"]]
        labels = [(subject, time + later, *rest) for subject, time, *rest in tidy["labels"]]
        return tidy | {"subjects": subjects, "labels": labels}

    return expected


STRING, LARGE, VIEW = pa.string(), pa.large_string(), pa.string_view()
DICTIONARY = pa.dictionary(pa.int32(), STRING)
EMPTY = pa.table({name: pa.nulls(0) for name in ("subject_id", "time", "code", "numeric_value", "unit", "visit")})
WITHOUT_EVENTS = "subjects of metadata/subject_splits.parquet without events in data/:"
RESTORE = "If they should have some, restore the missing files."
WAY = r"(Cast it|Rename|Sort|Drop|Fix|Write|Remove|Restore|Keep|Use|List|Give|Put|Number)"

MUTATIONS = [
    # times
    Mutation("times as INT96", rewritten(lambda t: t, use_deprecated_int96_timestamps=True)),
    Mutation(
        "INT96 in the years 2340 and later, which nanoseconds do not reach",
        shift(140_000, use_deprecated_int96_timestamps=True),
        expected=lambda tidy: shifted(140_000)(tidy) | {"summary": tidy["summary"]},
    ),
    *(Mutation(f"times in {unit}", cast("time", pa.timestamp(unit))) for unit in ("s", "ms", "ns")),
    Mutation("times as dates", cast("time", pa.date32()), rf"'time' is date32\[day\], expected .* {WAY}"),
    Mutation("times with a zone", cast("time", pa.timestamp("us", "UTC")), rf"tz=UTC\], expected .* {WAY}"),
    Mutation("times as text", cast("time", STRING), rf"{FIRST}: the column 'time' is string, .* {WAY}"),
    Mutation("an open end", row_changed(time=datetime(9999, 12, 31)), rf"{FIRST}, row \d+: time lies .* {WAY}"),
    Mutation(
        "a time of 1600",
        row_changed(row=1, time=datetime(1600, 1, 1), code="A"),
        rf"{FIRST}, row 2: time lies .* {WAY}",
    ),
    Mutation(
        "a time of 1753",
        row_changed(row=1, time=datetime(1753, 1, 1), code="A"),
        rf"{FIRST}, row 2: time is more .* {WAY}",
    ),
    Mutation("unsorted", row_changed(row=3, time=datetime(2040, 1, 1)), rf"{FIRST}, row 5: time goes back .* {WAY}"),
    Mutation("a late static row", row_changed(row=3, time=None), rf"{FIRST}, row 4: a static row .* {WAY}"),
    Mutation(
        "an event before birth",
        all_of(row_changed(row=1, time=datetime(1949, 1, 1), code="A"), row_changed(row=2, code="MEDS_BIRTH")),
        rf"{FIRST}, row 2: time is more than 30 days before .* {WAY}",
    ),
    Mutation("a birth of 1700", row_changed(row=1, time=datetime(1700, 1, 1)), expected=first_birth_unknown),
    Mutation("a birth of 1300", row_changed(row=1, time=datetime(1300, 1, 1)), expected=first_birth_unknown),
    Mutation("a birth of 9999", row_changed(row=1, time=datetime(9999, 1, 1)), rf"{FIRST}, row 3: time goes back"),
    # subjects
    *(Mutation(f"subjects as {t}", cast("subject_id", t)) for t in (pa.int32(), pa.uint32(), pa.uint64())),
    Mutation("subjects as double", cast("subject_id", pa.float64()), rf"'subject_id' is double, expected .* {WAY}"),
    Mutation("subjects as text", cast("subject_id", STRING), rf"'subject_id' is string, expected an integer.* {WAY}"),
    Mutation("an empty subject", row_changed(subject_id=None), rf"{FIRST}, row \d+: subject_id is empty.* {WAY}"),
    Mutation("a scattered subject", row_changed(subject_id=SECRET), rf"{FIRST}, row \d+: .* not together.* {WAY}"),
    Mutation("a subject in two files", split_subject, rf"data/train/1.parquet: 1 of its subjects .* {WAY}"),
    Mutation(
        "old name of subjects", rewritten(lambda t: t.rename_columns({"subject_id": "patient_id"})), "Rename 'pat"
    ),
    Mutation("old name of times", rewritten(lambda t: t.rename_columns({"time": "timestamp"})), "Rename 'timestamp'"),
    # codes and texts
    *(Mutation(f"codes as {t}", cast("code", t)) for t in (LARGE, VIEW, DICTIONARY)),
    Mutation("codes as bytes", cast("code", pa.binary()), rf"{FIRST}: the column 'code' is binary, .* {WAY}"),
    Mutation("an empty code", row_changed(SECOND, code=""), rf"{SECOND}, row \d+: code is empty.* {WAY}"),
    Mutation("no code", row_changed(SECOND, code=None), rf"{SECOND}, row \d+: code is empty.* {WAY}"),
    Mutation(
        "a note as code", row_changed(SECOND, code="secret " * 99), rf"{SECOND}, row \d+: code is longer .* {WAY}"
    ),
    *(
        Mutation(f"{column} not UTF-8", not_utf8(column), rf"{SECOND}, row 5: {column} is not UTF-8 text.* {WAY}")
        for column in ("code", "text_value", "unit")
    ),
    *(Mutation(f"texts as {t}", cast("text_value", t)) for t in (LARGE, VIEW, DICTIONARY)),
    # values, units, visits
    *(
        Mutation(f"values as {t}", cast("numeric_value", t))
        for t in (pa.float64(), pa.float16(), pa.int16(), pa.uint64(), pa.decimal128(20, 4))
    ),
    Mutation("values as decimal256(76, 38)", recoded("numeric_value", lambda v: v and Decimal(v).scaleb(0))),
    Mutation("values as text", cast("numeric_value", STRING), rf"'numeric_value' is string, expected a number.* {WAY}"),
    Mutation("values as truth", cast("numeric_value", pa.bool_()), rf"'numeric_value' is bool, expected .* {WAY}"),
    *(
        Mutation(f"missing units written {spelling!r}", recoded("unit", lambda unit, s=spelling: unit or s))
        for spelling in ("NA", " n/a ", "NULL", "None", "nan", "\\N", "", "<NA>")
    ),
    *(Mutation(f"units as {t}", cast("unit", t)) for t in (LARGE, DICTIONARY)),
    Mutation(
        "no units in one file", rewritten(lambda t: t.drop_columns("unit"), (SECOND,)), rf"{SECOND}: no column 'unit'"
    ),
    *(
        Mutation(f"units as {t}", all_of(recoded("unit", lambda unit: unit and 8753), cast("unit", t)))
        for t in (pa.int32(), pa.float64(), pa.decimal128(38, 0))
    ),
    Mutation("units as lists", recoded("unit", lambda unit: [unit]), rf"{FIRST}: .* \(unit_column\) is list.* {WAY}"),
    Mutation("visits as lists", recoded("visit", lambda visit: [visit]), rf"{FIRST}: .* \(visit_column\) is .* {WAY}"),
    Mutation("no visits", rewritten(lambda t: t.drop_columns("visit")), rf"{FIRST}: no column 'visit', .* {WAY}"),
    *(
        Mutation(f"visits as {t}", cast("visit", t))
        for t in (STRING, pa.int32(), pa.decimal128(20, 0), pa.decimal256(60, 0))
    ),
    Mutation(
        "visits as pandas writes them", recoded("visit", lambda visit: float("nan") if visit is None else float(visit))
    ),
    Mutation("visits as text, empty ones", recoded("visit", lambda visit: "" if visit is None else str(visit))),
    # further columns
    Mutation("a column of decimal256", added(pa.decimal256(76, 38), Decimal("1.5"))),
    Mutation("a column of maps", added(pa.map_(STRING, pa.int64()), [("a", 1)])),
    Mutation("a column of lists", added(pa.list_view(STRING), ["a"])),
    Mutation("a column of records", added(pa.struct({"code": STRING}), {"code": "x"})),
    Mutation("a column twice", all_of(added(STRING, "a"), added(STRING, "b"))),
    Mutation("codes twice", added(STRING, "A", "code"), rf"{FIRST}: the column 'code' is there twice.* {WAY}"),
    # files
    Mutation("macOS's junk", file_written("data/train/._0.parquet")),
    Mutation("what Spark leaves", all_of(file_written("data/_SUCCESS"), file_written("data/_temporary/0/0.parquet"))),
    Mutation("a hidden folder", file_written("data/.ipynb_checkpoints/0.parquet")),
    Mutation("folders of parts", all_of(as_folder(FIRST), as_folder(SECOND))),
    Mutation("a link to a folder", linked("data/train")),
    Mutation("a link to a file", linked(FIRST)),
    Mutation("a link to all data", linked("data")),
    Mutation("a link to nothing", link("data/9.parquet", "gone.parquet"), rf"9.parquet is a link to .* {WAY}"),
    Mutation("a loop of links", link("data/rest/again", "data"), rf"again is a link to a folder above it.* {WAY}"),
    Mutation("a file by two links", link("data/9.parquet", FIRST), rf"9.parquet and {FIRST} are the same file.* {WAY}"),
    Mutation(
        "a copy of a file",
        lambda folder, rng: shutil.copy(folder / FIRST, folder / "data" / "train" / "1.parquet"),
        rf"data/train/1.parquet: 6 of its subjects are in an earlier file too.* {WAY}",
    ),
    Mutation("capital suffix", moved(FIRST, "data/train/0.PARQUET")),
    Mutation("hive's folders", moved(FIRST, "data/split=train/part=0/0.parquet")),
    Mutation("all in one file", one_file),
    Mutation("CSV beside the shards", file_written("data/1.csv"), expected=differing(unread=["data/1.csv"])),
    Mutation("a gzipped shard", file_written("data/1.parquet.gz"), expected=differing(unread=["data/1.parquet.gz"])),
    Mutation("a note in metadata", file_written("metadata/a.txt"), expected=differing(unread=["metadata/a.txt"])),
    Mutation("a file beside data/", file_written("README.md")),
    Mutation("a Delta Lake table", file_written("data/_delta_log/0.json"), rf"a table of Delta Lake .* {WAY}"),
    Mutation("an Iceberg table", file_written("data/metadata/v1.metadata.json"), rf"table of Apache Iceberg .* {WAY}"),
    Mutation("an empty file", file_written("data/9.parquet", b""), rf"data/9.parquet: not a readable parquet .* {WAY}"),
    Mutation("a text file", file_written("data/9.parquet"), rf"data/9.parquet: not a readable parquet file .* {WAY}"),
    Mutation("a shard cut off", cut_off(FIRST), rf"{FIRST}: not a readable parquet file .* {WAY}"),
    Mutation("a shard without rows", lambda folder, rng: pq.write_table(EMPTY, folder / "data" / "9.parquet")),
    Mutation("row groups of one row", rewritten(lambda t: t, row_group_size=1)),
    Mutation("no dictionaries, other pages", rewritten(lambda t: t, use_dictionary=False, data_page_version="2.0")),
    *(Mutation(f"compressed by {name}", rewritten(lambda t: t, compression=name)) for name in ("zstd", "gzip", "none")),
    Mutation("no rows", rewritten(lambda table: table.slice(0, 0)), rf"data/: no file in it has rows.* {WAY}"),
    Mutation("no data", lambda folder, rng: shutil.rmtree(folder / "data"), rf"holds no data/.* {WAY}"),
    # metadata/codes.parquet
    Mutation("no descriptions", lambda folder, rng: (folder / CODES).unlink()),
    Mutation("parents of no type", table_of_codes(code=pa.array(["URINE"]), parent_codes=pa.nulls(1))),
    Mutation("codes of no type", table_of_codes(code=pa.nulls(0), description=pa.nulls(0), parent_codes=pa.nulls(0))),
    Mutation(
        "parents in large lists, codes repeated and empty",
        table_of_codes(
            code=pa.array(["URINE", "URINE", None], DICTIONARY),
            parent_codes=pa.array([["A"], ["B"], None], pa.large_list(LARGE)),
        ),
    ),
    Mutation(
        "parents as text",
        table_of_codes(code=pa.array(["URINE"]), parent_codes=pa.array(['["A"]'])),
        rf"{CODES}: the column 'parent_codes' is String, expected a list of strings.* {WAY}",
    ),
    Mutation(
        "parents as maps",
        table_of_codes(code=pa.array(["URINE"]), parent_codes=pa.array([[("a", 1)]], pa.map_(STRING, pa.int64()))),
        rf"{CODES}: the column 'parent_codes' is map.* cannot be read.* {WAY}",
    ),
    Mutation(
        "descriptions as numbers",
        table_of_codes(code=pa.array(["URINE"]), description=pa.array([1])),
        rf"{CODES}: the column 'description' is Int64, expected a string.* {WAY}",
    ),
    Mutation(
        "no code in codes", table_of_codes(concept=pa.array(["A"])), rf"{CODES}: the column 'code' is missing.* {WAY}"
    ),
    Mutation("codes cut off", cut_off(CODES), rf"{CODES}: not a readable parquet file .* {WAY}"),
    Mutation("codes as a folder", as_folder(CODES)),
    # metadata/subject_splits.parquet
    Mutation("splits as a folder", as_folder(SPLITS)),
    Mutation(
        "splits in other types", all_of(cast("subject_id", pa.int32(), (SPLITS,)), cast("split", DICTIONARY, (SPLITS,)))
    ),
    Mutation(
        "splits of other names", recoded("split", str.upper, (SPLITS,)), rf"{SPLITS}, rows .*: split is not .* {WAY}"
    ),
    Mutation(
        "subjects of splits as text",
        cast("subject_id", STRING, (SPLITS,)),
        rf"{SPLITS}: .* expected an integer.* {WAY}",
    ),
    Mutation(
        "a subject with two splits", row_changed(SPLITS, subject_id=SECRET), rf"{SPLITS}, row 12: .* twice.* {WAY}"
    ),
    Mutation(
        "subjects of splits without events",
        rewritten(
            lambda t: pa.concat_tables([t, pa.table({"subject_id": [5], "split": ["train"]}).cast(t.schema)]), (SPLITS,)
        ),
        expected=lambda tidy: tidy | {"warnings": [f"{WITHOUT_EVENTS} <10 in train. {RESTORE}", *tidy["warnings"]]},
    ),
    Mutation("splits cut off", cut_off(SPLITS), rf"{SPLITS}: not a readable parquet file .* {WAY}"),
]


@pytest.fixture(scope="module")
def tidy(tmp_path_factory):
    """A tidy data set in `tidy/` and the files beside it that its readers need; and what they make of it."""
    root = tmp_path_factory.mktemp("mutations")
    (root / "profile.yaml").write_text(yaml.safe_dump(PROFILE))
    (root / "spec.yaml").write_text("name: tidy\n")
    write_tidy(root / "tidy")
    return root, read(root / "tidy", root / "out")


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_right_or_refused(tidy, tmp_path, mutation, monkeypatch):
    monkeypatch.setattr("ehrctx.artifacts._versions", dict)  # a fourth of the time, for what no test here looks at
    root, result = tidy
    shutil.copytree(root, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    assert_right_or_refused(mutation, tmp_path / "tidy", tmp_path / "out", read, result)


def test_the_tidy_set_has_what_is_changed(tidy):
    """So that no comparison is empty."""
    _, result = tidy
    assert result["summary"]["subjects"] == 12
    assert {"code", "number", "text"} <= result["outcomes"].keys()
    assert len({label[2] for label in result["labels"]}) == 2
    assert all(subject[3] for subject in result["subjects"])  # born
    assert result["births_too_early"] == 0
    assert result["unread"] == []


def test_the_command_line_says_one_sentence_and_ends_with_2(tidy, tmp_path, run):
    root, _ = tidy
    shutil.copytree(root / "tidy", tmp_path / "data")
    row_changed(time=datetime(9999, 12, 31))(tmp_path / "data", np.random.default_rng(0))
    out = tmp_path / "out"
    words = [tmp_path / "data", "--profile", root / "profile.yaml"]
    for command in (
        ("check", *words),
        ("split", tmp_path / "data", "--out", out),
        ("tokenize", *words, "--splits", root / "tidy" / SPLITS, "--out", out),
        ("label", *words, "--task", "guo_los", "--out", out),
    ):
        code, _, said = run(*command)
        assert code == 2
        assert "Traceback" not in said
        assert f"{FIRST}, row " in said
        assert str(SECRET)[:6] not in said
        assert not out.exists()
