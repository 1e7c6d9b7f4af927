"""A shard in pieces: whole subjects, every row once, and read as the whole shard is."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.events.pieces import pieces_of
from ehrctx.events.profile import DatasetProfile
from ehrctx.events.rules import violations_of
from ehrctx.events.shards import read_piece, read_shard

PROFILE = DatasetProfile(name="p", unit_column="unit", visit_column="visit", date_only=("DX",))
DAY = datetime(2020, 1, 1)
SECRET = 987654321


def rows_of(lengths):
    """A frame of subjects with so many events each, in no order of their ids."""
    subjects = [(s * 7919) % 1000 - 500 for s in range(len(lengths))]
    rows = []
    for subject, length in zip(subjects, lengths, strict=True):
        for i in range(length):
            code = ["A", "B", "DX", f"C{len(rows) % 5}"][i % 4]
            time = None if i == 0 and subject % 2 else DAY + timedelta(days=i // 3)
            rows.append(
                (
                    subject,
                    time,
                    code,
                    [None, 0.5 * i, -0.0][i % 3],
                    [None, "", "low"][i % 3],
                    "mg" if i % 2 else None,
                    i,
                )
            )
    schema = {
        "subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32,
        "text_value": pl.String, "unit": pl.String, "visit": pl.Int64,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def write(folder, frame, groups):
    """A data set of one shard whose row groups have these sizes in turn, again and again."""
    file = folder / "data" / "0.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    table, at, turn = frame.to_arrow(), 0, 0
    with pq.ParquetWriter(file, table.schema) as writer:
        while at < len(table):
            writer.write_table(table.slice(at, groups[turn % len(groups)]))
            at, turn = at + groups[turn % len(groups)], turn + 1
    return open_dataset(folder)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(st.integers(1, 4), st.integers(1, 40)), max_size=25),
    st.lists(st.integers(1, 30), min_size=1, max_size=3),
    st.integers(1, 80),
)
def test_pieces_are_whole_subjects_and_hold_every_row_once(tmp_path, lengths, groups, rows):
    frame = rows_of(lengths)
    dataset = write(tmp_path, frame, groups)
    pieces = pieces_of(dataset, rows)
    assert [p.first_row for p in pieces] == np.cumsum([0, *(p.n_rows for p in pieces)]).tolist()[:-1]
    assert sum(p.n_rows for p in pieces) == frame.height
    borders = {0, *np.cumsum(lengths).tolist()}
    assert {p.first_row for p in pieces} <= borders
    assert all(p.n_rows >= rows for p in pieces[:-1])
    whole = read_shard(dataset, dataset.shards[0], PROFILE)
    parts = [read_piece(dataset, piece, PROFILE, visits=True).frame() for piece in pieces]
    assert pl.concat(parts).equals(whole)
    assert sum(part.height for part in parts) == whole.height == frame.height
    without = [read_piece(dataset, piece, PROFILE).frame() for piece in pieces]
    assert pl.concat(part.drop("visit") for part in without).equals(whole.drop("visit"))


def test_pieces_are_about_as_large_as_asked(tmp_path):
    """Of small subjects, each piece ends in the first row group that fills it."""
    dataset = write(tmp_path, rows_of([2] * 500), [10])
    pieces = pieces_of(dataset, 100)
    assert len(pieces) == 10
    assert {p.n_rows for p in pieces} == {100}
    # a subject that is longer than a piece stays whole
    dataset = write(tmp_path, rows_of([2, 2, 500, 2, 2, 2]), [10])
    assert [p.n_rows for p in pieces_of(dataset, 20)] == [504, 6]
    assert [p.n_rows for p in pieces_of(dataset, 2**62)] == [510]


def test_one_row_group_is_one_piece(tmp_path):
    dataset = write(tmp_path, rows_of([3] * 50), [1000])
    assert [(p.n_rows, p.row_groups, p.skipped) for p in pieces_of(dataset, 10)] == [(150, (0,), 0)]


def test_an_empty_shard_is_an_empty_piece(tmp_path):
    dataset = write(tmp_path, rows_of([]), [10])
    (piece,) = pieces_of(dataset, 10)
    assert piece.n_rows == 0
    assert len(read_piece(dataset, piece, PROFILE)) == 0


def test_all_shards_in_order(tmp_path, write_meds):
    folder = write_meds(tmp_path, {"b": rows_of([2]), "a/1": rows_of([3]), "a/0": rows_of([4])})
    found = [(p.shard.name, p.n_rows) for p in pieces_of(open_dataset(folder))]
    assert found == [("0.parquet", 4), ("1.parquet", 3), ("b.parquet", 2)]


BREAKS = {
    "back in time": {"time": DAY - timedelta(days=900)},
    "late static": {"time": None},
    "null code": {"code": None},
    "empty code": {"code": ""},
    "long code": {"code": "secret value " * 50},
    "null subject": {"subject_id": None},
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("row", [5, 93, 155, 199])
def test_errors_name_the_row_counted_from_the_files_start(tmp_path, name, row):
    """Also in later pieces, whose first row group holds rows of the piece before."""
    broken = rows_of([7] * 30).with_columns(subject_id=pl.col("subject_id") + SECRET).to_dicts()
    broken[row] |= BREAKS[name]
    frame = pl.DataFrame(broken, schema=rows_of([]).schema)
    dataset = write(tmp_path, frame, [9])
    pieces = pieces_of(dataset, 30)
    assert len(pieces) > 4
    (bad,) = [p for p in pieces if p.first_row <= row < p.first_row + p.n_rows]
    with pytest.raises(InputError, match=rf"^data/0\.parquet, rows? {row + 1}\b") as caught:
        read_piece(dataset, bad, PROFILE)
    expected = violations_of(frame.slice(bad.first_row, bad.n_rows), "data/0.parquet", first_row=bad.first_row)
    assert str(caught.value).startswith(str(expected[0]))
    assert str(SECRET)[:5] not in str(caught.value)
    assert "secret" not in str(caught.value)
    for piece in pieces:
        if piece is not bad:
            read_piece(dataset, piece, PROFILE)


def test_a_truncated_shard_is_an_input_error(tmp_path):
    dataset = write(tmp_path, rows_of([3] * 300), [100])
    file = dataset.shards[0]
    content = file.read_bytes()
    for kept in (0, 10, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"^data/0\.parquet is not a readable parquet file") as caught:
            pieces_of(dataset, 50)
        assert "Write it again." in str(caught.value)
    # its end is there, its middle is not
    file.write_bytes(content[:100] + b"\0" * (len(content) // 2) + content[100 + len(content) // 2 :])
    for piece in pieces_of(dataset, 2**62):
        with pytest.raises(InputError, match=r"^data/0\.parquet is not a readable parquet file"):
            read_piece(dataset, piece, PROFILE)


def not_utf8(values):
    """Strings as a file may hold them, though it should not."""
    raw = pa.array([None if v is None else v if isinstance(v, bytes) else v.encode() for v in values], pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())


@pytest.mark.parametrize("column", ["code", "text_value", "unit"])
@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize(("row", "row_group"), [(0, 8), (77, 8), (149, 8), (49, 12), (50, 12)])
def test_text_that_is_not_utf8_is_refused_with_its_row(tmp_path, column, dictionary, row, row_group):
    """Rows 49 and 50 are in one row group, whose dictionary two pieces share."""
    frame = rows_of([5] * 30)
    table = frame.to_arrow()
    values = [value or "x" for value in frame[column].to_list()]
    values[row] = b"secret \xe9"  # Latin-1
    table = table.set_column(table.column_names.index(column), column, not_utf8(values))
    file = tmp_path / "data" / "0.parquet"
    file.parent.mkdir()
    pq.write_table(table, file, row_group_size=row_group, use_dictionary=dictionary)
    dataset = open_dataset(tmp_path)
    pieces = pieces_of(dataset, 40)
    assert len(pieces) > 2
    (bad,) = [p for p in pieces if p.first_row <= row < p.first_row + p.n_rows]
    with pytest.raises(InputError, match=rf"^data/0\.parquet, row {row + 1}: {column} is not UTF-8 text") as caught:
        read_piece(dataset, bad, PROFILE)
    assert "secret" not in str(caught.value)
    for piece in pieces:
        if piece is not bad:
            read_piece(dataset, piece, PROFILE)
