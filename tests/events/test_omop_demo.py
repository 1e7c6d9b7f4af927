"""Synthea27Nj (28 simulated subjects, OHDSI's own import) against a second importer that reads one row at a time."""

import polars as pl
import pytest
from omop_by_hand import slow_import

from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.omop.convert import import_omop
from ehrctx.study import HashSplits, OmopOptions


@pytest.mark.parametrize("codes", ["standard", "source"])
def test_the_slow_importer_finds_the_same(omop_demo, tmp_path, codes):
    facts = import_omop(omop_demo, tmp_path / "meds", OmopOptions(codes=codes), HashSplits(hash=(0.5, 0.2, 0.3)))
    events = pl.concat([pl.read_parquet(file) for file in sorted((tmp_path / "meds/data").iterdir())])
    slow = pl.DataFrame(slow_import(omop_demo, codes == "source"), schema=events.schema, orient="row")
    assert events.sort("subject_id", maintain_order=True).equals(slow)
    assert facts["subjects"] == 28
    assert facts["events"] == slow.height
    summary, violations = check(open_dataset(tmp_path / "meds"))
    assert violations == []
    assert (summary["subjects"], summary["events"]) == (28, slow.height)
