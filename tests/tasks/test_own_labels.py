"""A task that is one label file, or a folder of labels: its name, its definition, and studies that mix the kinds."""

from datetime import datetime

import polars as pl
import pytest
import yaml

from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.definition import Given, load_definition, load_definitions
from ehrctx.tasks.given import read_given
from ehrctx.tasks.imports import given_files
from ehrctx.tasks.label_sets import read_labels, write_labels

TIME = datetime(2020, 1, 1, 7, 30)


def put(file, subjects=(1,)):
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = pl.DataFrame({"subject_id": subjects, "prediction_time": [TIME] * len(subjects)})
    labels = labels.with_columns(boolean_value=pl.col("subject_id") % 2 == 0)
    if file.suffix == ".csv":
        labels.rename({"boolean_value": "value"}).write_csv(file, datetime_format="%Y-%m-%dT%H:%M:%S")
    else:
        labels.write_parquet(file)
    return file


@pytest.mark.parametrize(
    ("place", "files"),
    [
        ("sepsis.parquet", ["sepsis.parquet"]),
        ("sepsis.csv", ["sepsis.csv"]),
        ("sepsis/labels.parquet", ["sepsis/labels.parquet"]),
        ("sepsis/labeled_patients.csv", ["sepsis/labeled_patients.csv"]),
        ("sepsis", ["sepsis/labeled_patients.csv"]),
        ("sepsis/", ["sepsis/held_out/0.parquet", "sepsis/train/0.parquet"]),
    ],
)
def test_a_label_file_or_folder_is_a_task_of_its_name(tmp_path, place, files):
    expected = tuple(put(tmp_path / "my labels" / file) for file in files)
    definition = load_definition(f"{tmp_path}/my labels/{place}")
    assert (definition.task, definition.family) == ("sepsis", "given")
    assert given_files([definition], None) == {"sepsis": expected}
    assert Given.model_validate_json(definition.model_dump_json()) == definition  # as Snakemake hands it on


@pytest.mark.parametrize("name", ["My Sepsis.csv", "_x.parquet", "1-2.parquet", "Sepsis"])
def test_a_file_whose_name_is_none_of_a_task_is_refused(tmp_path, name):
    place = tmp_path / name
    put(place if place.suffix else place / "0.parquet")
    with pytest.raises(InputError, match=r"is no name of a task, which has lower-case letters, digits and _ alone\."):
        load_definition(str(place))


def test_reserved_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="'macro' is the name of a mean over tasks"):
        load_definition(str(put(tmp_path / "macro.csv")))
    with pytest.raises(InputError, match="'chexpert' holds 14 findings in one number"):
        load_definition(str(put(tmp_path / "chexpert" / "labeled_patients.csv")))


@pytest.mark.parametrize("name", ["sepsis.csv", "sepsis.parquet", "nowhere/labels.parquet"])
def test_a_label_file_that_is_not_there(tmp_path, name):
    with pytest.raises(InputError, match=r"^no such label file: .*\.$"):
        load_definition(str(tmp_path / name))


def test_a_definition_gives_labels_another_name_and_a_question(tmp_path):
    file = put(tmp_path / "labels" / "Sepsis (final).csv")
    values = {"task": "sepsis", "family": "given", "question": "Will there be sepsis?", "labels": f"labels/{file.name}"}
    (tmp_path / "sepsis.yaml").write_text(yaml.safe_dump(values))
    definition = load_definition(str(tmp_path / "sepsis.yaml"))
    assert (definition.task, definition.question) == ("sepsis", "Will there be sepsis?")
    assert given_files([definition], None) == {"sepsis": (file,)}


def test_two_tasks_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="two definitions are both called 'guo_los'"):
        load_definitions(["guo_los", str(put(tmp_path / "guo_los.csv"))])


def test_made_and_given_tasks_in_one_study(cohort, repository, tmp_path):
    """The made ones are those that are made without the others; each given one comes from its own file."""
    subjects = pl.read_parquet(cohort.splits)["subject_id"].to_list()
    csv, shards = put(tmp_path / "sepsis.csv", subjects[:9]), tmp_path / "fall"
    put(shards / "train" / "0.parquet", subjects[5:7])
    put(shards / "held_out" / "0.parquet", subjects[7:8])
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    tasks = [str(csv), "guo_los", str(shards), "new_acutemi"]
    facts = write_labels(cohort.events, profile, tasks, Labels(), tmp_path / "labels")
    assert list(facts) == ["sepsis", "guo_los", "fall", "new_acutemi"]
    labels, made = read_labels(tmp_path / "labels"), read_labels(cohort.labels)
    for task in ("guo_los", "new_acutemi"):
        assert labels[task].equals(made[task])
    assert labels["sepsis"].equals(read_given(csv))
    assert labels["fall"]["subject_id"].to_list() == sorted(subjects[5:8])
    assert facts["sepsis"]["labels"] == 9


def test_a_folder_for_all_tasks_leaves_a_tasks_own_file_alone(cohort, repository, tmp_path):
    subjects = pl.read_parquet(cohort.splits)["subject_id"].to_list()
    own, common = (
        put(tmp_path / "own" / "sepsis.csv", subjects[:2]),
        put(tmp_path / "all" / "guo_los.csv", subjects[:5]),
    )
    put(tmp_path / "all" / "sepsis.csv", subjects[:7])
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    choices = Labels(given=str(tmp_path / "all"))
    write_labels(cohort.events, profile, [str(own), "guo_los"], choices, tmp_path / "labels")
    labels = read_labels(tmp_path / "labels")
    assert labels["sepsis"].equals(read_given(own))
    assert labels["guo_los"].equals(read_given(common))


@pytest.mark.parametrize("name", ["cohort.txt", "cohort.tsv", "cohort"])
def test_a_file_that_is_no_definition_is_never_quoted(tmp_path, name):
    """It may hold patients: a file of labels under another name."""
    file = tmp_path / name
    file.write_text("subject_id,prediction_time,value\n987654321,2010-01-01T00:00:00,True\n")
    with pytest.raises(InputError) as caught:
        load_definition(str(file))
    assert "987654321" not in str(caught.value)
    assert "a definition is a .yaml file, and labels are .parquet or .csv" in str(caught.value)


def test_the_case_of_a_suffix_does_not_matter(tmp_path):
    file = tmp_path / "sepsis.CSV"
    file.write_text("subject_id,prediction_time,value\n1,2010-01-01T00:00:00,True\n")
    definition = load_definition(str(file))
    assert isinstance(definition, Given)
    assert read_given(file)["boolean_value"].to_list() == [True]
