"""MEDS data sets are written sorted and sharded, whatever the order in which their events come."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrctx.events import writer
from ehrctx.events.writer import ShardWriter, sharded, shards_for


def events(subjects, hours, values):
    """One event each; an hour of None is static."""
    times = [None if h is None else datetime(2020, 1, 1) + timedelta(hours=int(h)) for h in hours]
    return pl.DataFrame(
        {"subject_id": subjects, "time": times, "code": [str(v) for v in values]},
        schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String},
    )


def written(folder):
    return [pl.read_parquet(file) for file in sorted((folder / "data").iterdir())]


def test_how_many_shards():
    assert shards_for(0) == shards_for(1_400_000) == 1
    assert shards_for(3_000_000) == 3
    assert shards_for(10**12) == 500


def test_ties_keep_rank_and_then_the_order_of_adding(tmp_path):
    with sharded(tmp_path, 1) as shards:
        shards.add(events([1, 1], [5, 5], ["end", "end2"]), rank=9)
        shards.add(events([1, 1, 1], [5, 4, None], ["a", "earlier", "static"]), rank=3)
        shards.add(events([1], [5], ["start"]), rank=0)
        shards.add(events([1], [5], ["b"]), rank=3)
        shards.add(events([0], [5], ["other"]))
    (shard,) = written(tmp_path)
    assert shard.columns == ["subject_id", "time", "code"]
    assert shard["code"].to_list() == ["other", "static", "earlier", "start", "a", "b", "end", "end2"]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "ids", [np.arange(300), np.arange(300) * 16, np.arange(300) - 150, 10**15 + np.arange(300) * 64]
)
def test_any_order_and_any_spilling_gives_the_same(tmp_path, monkeypatch, ids):
    draw = np.random.default_rng(0)
    subjects, hours, ranks = draw.choice(ids, 5_000), draw.integers(0, 20, 5_000), draw.integers(0, 4, 5_000)
    known = sorted(zip(subjects.tolist(), hours.tolist(), ranks.tolist(), range(5_000), strict=True))
    monkeypatch.setattr(writer, "SPILLED", 700)
    for n_shards in (1, 7):
        folder = tmp_path / str(n_shards)
        folder.mkdir()
        with sharded(folder, n_shards) as shards:
            for i in range(5_000):
                shards.add(events([subjects[i]], [hours[i]], [i]), int(ranks[i]))
        assert shards.n_events == 5_000
        parts = written(folder)
        assert len(parts) == n_shards
        # no shard is much larger than its share, however the ids are spaced
        assert max(part.height for part in parts) < 2 * 5_000 / n_shards
        assert len({s for part in parts for s in part["subject_id"].unique()}) == sum(
            part["subject_id"].n_unique() for part in parts
        )
        together = pl.concat(parts).sort("subject_id", maintain_order=True)
        assert together["code"].to_list() == [str(i) for *_, i in known]


def test_no_more_rows_are_held_than_are_spilled(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SPILLED", 100)
    shards = ShardWriter(tmp_path, 3)
    held = []
    for i in range(50):
        shards.add(events([i] * 30, range(30), range(30)))
        held.append(sum(frame.height for frame in shards._waiting))
    assert max(held) < 100
    shards.close()
    assert sum(part.height for part in written(tmp_path)) == 1_500
