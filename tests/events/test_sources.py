"""What a study's `source` says, and the files that its import reads."""

from pathlib import Path

import pytest

from ehrctx.configuration import validate
from ehrctx.errors import InputError
from ehrctx.events.sources import source_files
from ehrctx.study import Study

MINIMAL = {"name": "x", "models": ["gpt-tiny-128"], "tasks": ["guo_los"], "profile": "ehrshot"}


def study_of(source):
    return validate(Study, MINIMAL | {"source": source}, "study")


def test_ehrshot_in_a_study(tmp_path):
    for name in ("data/ehrshot.csv", "splits/person_id_map.csv", "benchmark/guo_los/labeled_patients.csv"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    study = study_of({"format": "ehrshot", "folder": str(tmp_path), "concepts": "my athena"})
    names = ["data/ehrshot.csv", "splits/person_id_map.csv", "benchmark/guo_los/labeled_patients.csv"]
    assert source_files(study.source) == [*(tmp_path / name for name in names), Path("my athena/CONCEPT.csv")]
    assert study.import_options() == "--implausible-time refuse --concepts 'my athena'"
    assert study_of({"format": "ehrshot", "folder": "x"}).import_options() == "--implausible-time refuse"


def test_femr_in_a_study(tmp_path):
    for name in ("meta", "patients", "ontology/main"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    study = study_of({"format": "femr", "folder": str(tmp_path)})
    assert source_files(study.source) == [tmp_path / name for name in ("meta", "ontology/main", "patients")]
    assert study.import_options() == "--implausible-time refuse"
    (tmp_path / "patients").unlink()
    with pytest.raises(InputError, match="neither a meds_reader database"):
        source_files(study.source)


WRONG = {
    "`source.format`: expected 'omop' or 'ehrshot' or 'femr', found 'fhir'": {"format": "fhir", "folder": "x"},
    "the key `source.format` is missing": {"folder": "x"},
    "the key `source.folder` is missing": {"format": "femr"},
    "unknown key `source.concept`; did you mean 'concepts'?": {"format": "ehrshot", "folder": "x", "concept": "y"},
    "unknown key `source.concepts`; known: folder, format, implausible_time.": {
        "format": "femr",
        "folder": "x",
        "concepts": "y",
    },
    "`source`: expected keys and values, as in {key: value}, found 'x'": "x",
}  # fmt: skip


@pytest.mark.parametrize("said", WRONG)
def test_mistakes_are_told_by_key(said):
    with pytest.raises(InputError) as caught:
        study_of(WRONG[said])
    assert said in str(caught.value)
