"""Labelers that were written for femr: the same labels as a loop by hand, and as our own labelers on real data."""

import importlib.util
from datetime import datetime, timedelta

import polars as pl
import pytest
import yaml

from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.definition import Femr, load_definition
from ehrctx.tasks.imports import watched_files
from ehrctx.tasks.label_sets import read_labels, write_labels

needs_femr = pytest.mark.skipif(
    importlib.util.find_spec("femr") is None, reason="needs femr (pip install --editable '.[femr]' brings it)"
)
T = datetime(2020, 1, 1)
SECRET = 48_151_623

READMITTED = """
from datetime import timedelta
from femr.labelers import TimeHorizon
from femr.labelers.omop import CodeLabeler

class Back(CodeLabeler):
    '''Is there another admission within so many days after a discharge?'''

    def __init__(self, days, admission="IN", discharge="OUT"):
        horizon = TimeHorizon(timedelta(minutes=1), timedelta(days=days))
        super().__init__([admission], horizon, [discharge])
"""

LONG_STAYS = """
from datetime import timedelta
from femr.labelers import Label, Labeler

class LongStay(Labeler):
    def __init__(self, days, admission, discharge):
        self.least, self.admission, self.discharge = timedelta(days=days), admission, discharge

    def label(self, subject):
        admitted, discharged = {}, {}
        for event in subject.events:
            if event.hadm_id is None:
                continue
            if event.code.startswith(self.admission):
                admitted.setdefault(event.hadm_id, event.time)
            if event.code.startswith(self.discharge):
                discharged[event.hadm_id] = event.time
        for visit in admitted.keys() & discharged.keys():
            start, end = admitted[visit], discharged[visit]
            if end.date() > start.date():
                time = start.replace(hour=23, minute=59, second=0, microsecond=0)
                yield Label(subject.subject_id, time, end - start >= self.least)
"""


@pytest.fixture
def define(tmp_path):
    """A function (source, class, arguments) -> the path of a definition beside the labeler's file."""

    def write(source, cls, task="own", **arguments):
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / f"{task}.py").write_text(source)
        values = {
            "task": task,
            "family": "femr",
            "question": "?",
            "labeler": f"{task}.py:{cls}",
            "arguments": arguments,
        }
        file = tmp_path / "tasks" / f"{task}.yaml"
        file.write_text(yaml.safe_dump(values))
        return str(file)

    return write


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory):
    """A profile that femr never sees: what happens at midnight would move."""
    file = tmp_path_factory.mktemp("profile") / "own.yaml"
    file.write_text("name: own\ndate_only: ['IN', 'OUT']\n")
    return str(file)


# one comes back after 20 days and is then seen for 40; the other never, and is seen for 5 days after the discharge
EVENTS = [
    (1, None, "SEX"), (1, T, "IN"), (1, T + timedelta(days=2), "OUT"), (1, T + timedelta(days=22), "IN"),
    (1, T + timedelta(days=23), "OUT"), (1, T + timedelta(days=63), "VISIT"),
    (SECRET, T, "IN"), (SECRET, T + timedelta(days=1), "OUT"), (SECRET, T + timedelta(days=6), "VISIT"),
]  # fmt: skip


@pytest.fixture(scope="module")
def data(write_meds, tmp_path_factory):
    """Types that MEDS lets pass and meds_reader does not: milliseconds, narrow ids, categories, lists, no numbers."""
    schema = {"subject_id": pl.Int32, "time": pl.Datetime("ms"), "code": pl.String}
    events = pl.DataFrame(EVENTS, schema=schema, orient="row").with_columns(
        pl.col("code").cast(pl.Categorical), empty=pl.lit(None), flag=pl.lit(True), many=pl.lit([1, 2])
    )
    shards = {f"part/{s}": events.filter(pl.col("subject_id") == s) for s in (1, SECRET)}
    return write_meds(tmp_path_factory.mktemp("femr") / "meds", shards, {1: "train", SECRET: "held_out"})


@needs_femr
def test_a_code_labeler_on_a_data_set_by_hand(data, define, profile_file, tmp_path):
    """femr gives no label where the record ends within the days, unless the outcome was seen; nothing is moved."""
    tasks = [define(READMITTED, "Back", "back_30", days=30), define(READMITTED, "Back", "back_3", days=3)]
    facts = write_labels(data, profile_file, tasks, Labels(), tmp_path / "labels")
    labels = read_labels(tmp_path / "labels")
    first, second = T + timedelta(days=2), T + timedelta(days=23)
    assert labels["back_30"].rows() == [(1, first, True, None), (1, second, False, None)]
    assert labels["back_3"].rows() == [
        (1, first, False, None),
        (1, second, False, None),
        (SECRET, T + timedelta(days=1), False, None),
    ]
    assert facts["back_30"] == {
        "question": "?",
        "labels": 2,
        "positive": 1,
        "left_out": dict.fromkeys(facts["back_30"]["left_out"], 0),
    }


@needs_femr
def test_long_stays_of_real_patients_are_those_of_our_own_labeler(mimic_demo, repository, define, tmp_path):
    profile = str(repository / "pipelines" / "datasets" / "mimic_iv.yaml")
    arguments = {"days": 7, "admission": "HOSPITAL_ADMISSION//", "discharge": "HOSPITAL_DISCHARGE//"}
    own = define(LONG_STAYS, "LongStay", "los_by_femr", **arguments)
    facts = write_labels(mimic_demo, profile, ["guo_los", own], Labels(), tmp_path / "labels")
    labels = read_labels(tmp_path / "labels")
    assert labels["guo_los"].height > 200
    assert labels["guo_los"]["boolean_value"].sum() > 50
    assert labels["los_by_femr"].equals(labels["guo_los"])
    assert not any(facts["los_by_femr"]["left_out"].values())


@needs_femr
def test_a_code_labeler_on_real_patients_is_a_loop_over_raw_events(mimic_demo, repository, define, tmp_path):
    discharge, admission = "HOSPITAL_DISCHARGE//HOME", "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM"
    own = define(READMITTED, "Back", days=30, admission=admission, discharge=discharge)
    profile = str(repository / "pipelines" / "datasets" / "mimic_iv.yaml")
    write_labels(mimic_demo, profile, [own], Labels(), tmp_path / "labels")
    events = pl.read_parquet(mimic_demo / "data" / "*" / "*.parquet", columns=["subject_id", "time", "code"])
    expected = set()
    for (subject,), own_events in events.drop_nulls("time").group_by("subject_id"):
        times = {code: own_events.filter(pl.col("code") == code)["time"].to_list() for code in (discharge, admission)}
        last = own_events["time"].max()
        for time in set(times[discharge]):
            soonest, latest = time + timedelta(minutes=1), time + timedelta(days=30)
            back = any(soonest <= admitted <= latest for admitted in times[admission])
            if (back or last >= latest) and time not in times[admission]:
                expected.add((subject, time, back))
    found = read_labels(tmp_path / "labels")["own"].rows()
    assert {row[:3] for row in found} == expected
    assert len(found) == len(expected) > 20
    assert {back for _, _, back in expected} == {True, False}


ODD = """
from femr.labelers import Label, Labeler

class Odd(Labeler):
    def __init__(self, what):
        self.what = what

    def label(self, subject):
        time = subject.events[-1].time
        if self.what == "fail":
            raise KeyError(subject.subject_id)
        if self.what == "nothing":
            return []
        value = {"text": "yes", "none": None}.get(self.what, True)
        time = None if self.what == "no time" else time
        twice = [Label(subject.subject_id, time, value)] * 2
        return [*twice, Label(subject.subject_id + 1, time, True)] if self.what == "stranger" else twice

class NoLabeler:
    pass
"""


@needs_femr
def test_labels_that_cannot_be_used_are_counted(data, define, profile_file, tmp_path):
    facts = write_labels(data, profile_file, [define(ODD, "Odd", what="stranger")], Labels(), tmp_path / "labels")
    assert facts["own"]["labels"] == 2
    assert facts["own"]["left_out"]["given twice"] == 2
    assert facts["own"]["left_out"]["of subjects that the data set does not have"] == 2


@needs_femr
def test_a_labeler_may_give_no_label(data, define, profile_file, tmp_path):
    facts = write_labels(data, profile_file, [define(ODD, "Odd", what="nothing")], Labels(), tmp_path / "labels")
    assert facts["own"]["labels"] == 0
    assert read_labels(tmp_path / "labels")["own"].is_empty()


@needs_femr
@pytest.mark.parametrize(
    ("source", "cls", "arguments", "words"),
    [
        (ODD, "Odd", {"what": "fail"}, r"the labeler of 'own' failed with KeyError in .*own\.py, line 11\. Fix it\."),
        (ODD, "Odd", {"what": "text"}, "'own' gave a boolean_value that is neither True nor False"),
        (ODD, "Odd", {"what": "none"}, "'own' gave a boolean_value that is neither True nor False"),
        (ODD, "Odd", {"what": "no time"}, "'own' gave a label without a prediction_time"),
        (ODD, "Odd", {}, r"own\.py: Odd does not take its `arguments`: TypeError: .*missing 1 required"),
        (ODD, "Odd", {"which": 1}, "Odd does not take its `arguments`: TypeError"),
        (ODD, "Other", {}, r"own\.py has no class 'Other' that derives from femr\.labelers\.Labeler"),
        (ODD, "NoLabeler", {}, "has no class 'NoLabeler' that derives from"),
        ("import nowhere_to_be_found", "Odd", {}, r"own\.py cannot be imported: ModuleNotFoundError"),
        ("class Odd(:", "Odd", {}, r"own\.py cannot be imported: SyntaxError"),
    ],
)
def test_a_labeler_that_fails_is_a_sentence_without_data(
    data, define, profile_file, tmp_path, source, cls, arguments, words
):
    with pytest.raises(InputError, match=words) as caught:
        write_labels(data, profile_file, [define(source, cls, **arguments)], Labels(), tmp_path / "labels")
    assert str(SECRET) not in str(caught.value)
    assert not (tmp_path / "labels").exists()


def test_without_femr_the_extra_is_named(data, define, profile_file, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "femr" else found(name, *more))
    with pytest.raises(
        InputError, match=r"needs the package femr, .* pip install --editable '\.\[femr\]' \(Linux"
    ) as e:
        write_labels(data, profile_file, [define(READMITTED, "Back", days=30)], Labels(), tmp_path / "labels")
    assert "\n" not in str(e.value)


def test_the_definition_finds_its_labeler_from_anywhere(define, tmp_path):
    file = define(READMITTED, "Back", days=30)
    definition = load_definition(file)
    assert definition.file == tmp_path / "tasks" / "own.py"
    assert watched_files([definition], None) == [definition.file]
    assert Femr.model_validate_json(definition.model_dump_json()) == definition
    definition.file.unlink()
    with pytest.raises(InputError, match=r"own\.yaml: no such file: .*own\.py\. Fix `labeler`\."):
        load_definition(file)


@pytest.mark.parametrize("labeler", ["own.py", "own:Back", "own.py:", "own.py:1x"])
def test_a_labeler_is_a_file_and_a_class(tmp_path, labeler):
    values = {"task": "own", "family": "femr", "question": "?", "labeler": labeler}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match="`labeler`"):
        load_definition(str(tmp_path / "own.yaml"))


def test_labels_that_are_given_replace_the_labeler(data, define, profile_file, tmp_path):
    (tmp_path / "given").mkdir()
    labels = pl.DataFrame({"subject_id": [1], "prediction_time": [T], "boolean_value": [True]})
    labels.write_parquet(tmp_path / "given" / "own.parquet")
    choices = Labels(given=str(tmp_path / "given"))
    own = define(READMITTED, "Back", days=30)
    assert watched_files([load_definition(own)], choices.given) == [tmp_path / "given" / "own.parquet"]
    assert write_labels(data, profile_file, [own], choices, tmp_path / "labels")["own"]["labels"] == 1
