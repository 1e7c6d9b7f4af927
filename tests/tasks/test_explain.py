# ruff: noqa: E501 (tables as they are printed)
"""`ehrctx label --explain`: it says of every candidate what the label files say, and why, and writes nothing."""

import re
from datetime import datetime

import polars as pl
import pytest
from hand_made import NO_CODES, PROFILE, event, events_of, stay_of
from typer.testing import CliRunner

from ehrctx.cli import app
from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.definition import load_definition
from ehrctx.tasks.explain import explain, explanation
from ehrctx.tasks.label_sets import read_labels, write_labels
from ehrctx.tasks.labelers import judge

TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?"
ROW = re.compile(rf"  ({TIME})  .*  (positive|negative)(?:, \w+ \(grade (\d)\))?")
LEFT_OUT = re.compile(rf"  {TIME}  .*  left out: (.+)")
COUNTS = re.compile(r"  (\d+) prediction times?: (\d+) labelled \((\d+) positive\), (\d+) left out")


def text_of(rows, task, profile=PROFILE, codes=NO_CODES):
    definition = load_definition(task)
    judged = judge(events_of(rows), profile, codes, definition)
    return explanation(judged.with_columns(pl.col("left_out").cast(pl.String)), definition, codes, profile)


def read(section):
    """Labels as (time, answer, grade), the reasons, and the counts of one task's section."""
    labels, reasons = [], []
    for line in section.splitlines():
        if found := LEFT_OUT.fullmatch(line):
            reasons.append(found[1])
        elif found := ROW.fullmatch(line):
            labels.append((datetime.fromisoformat(found[1]), found[2] == "positive", int(found[3] or 0)))
    counts = COUNTS.search(section)
    return labels, reasons, tuple(map(int, counts.groups())) if counts else (0, 0, 0, 0)


def compare(data, profile, tasks, choices, folder, subjects):
    """The explanations of these subjects hold their labels and no others; gives all reasons by task."""
    written = read_labels(folder)
    reasons = {task: [] for task in written}
    for subject in subjects:
        sections = explain(data, profile, tasks, choices, subject).split("\n\n\n")
        for section, (task, labels) in zip(sections, written.items(), strict=True):
            assert section.startswith(f"{task}: ")
            told, why, counts = read(section)
            own = labels.filter(subject_id=subject).select("prediction_time", "boolean_value", "integer_value").rows()
            assert sorted(told) == sorted((t.replace(microsecond=0), b, g or 0) for t, b, g in own)
            assert counts == (len(told) + len(why), len(told), sum(b for _, b, _ in told), len(why))
            reasons[task] += why
    return reasons


TASKS = ["guo_los", "guo_icu", "guo_readmission", "lab_hypoglycemia", "lab_anemia", "new_hypertension", "new_acutemi"]


def test_it_says_what_the_label_files_say_on_real_patients(mimic_demo, repository, tmp_path):
    """A whole shard: all their labels, and all the reasons that the manifest counts for them."""
    shard = sorted((mimic_demo / "data" / "tuning").glob("*.parquet"))
    subjects = (
        pl.concat(pl.read_parquet(file, columns=["subject_id"]) for file in shard)["subject_id"].unique().to_list()
    )
    data = tmp_path / "tuning"
    data.mkdir()
    (data / "data").symlink_to(mimic_demo / "data" / "tuning")
    (data / "metadata").symlink_to(mimic_demo / "metadata")
    profile = str(repository / "pipelines" / "datasets" / "mimic_iv.yaml")
    choices = Labels(max_times_per_subject=3)
    facts = write_labels(data, profile, TASKS, choices, tmp_path / "labels")
    reasons = compare(data, profile, TASKS, choices, tmp_path / "labels", subjects)
    for task in TASKS:
        assert {r: reasons[task].count(r) for r in facts[task]["left_out"]} == facts[task]["left_out"]
    assert reasons["lab_anemia"].count("beyond max_times_per_subject") > 20


def test_it_says_what_the_label_files_say_on_simulated_patients(cohort, repository):
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    folder, choices = cohort.labels, Labels(max_times_per_subject=2)
    subjects = pl.read_parquet(cohort.splits)["subject_id"].sort().to_list()[:12]
    reasons = compare(cohort.events, profile, list(read_labels(folder)), choices, folder, subjects)
    assert "beyond max_times_per_subject" in reasons["lab_hyponatremia"]


# --- what a reader sees -------------------------------------------------------------------------------------------

STAYS = [
    *stay_of(datetime(2020, 1, 3, 8), datetime(2020, 1, 5, 11), visit=1),
    event(datetime(2020, 1, 4, 9), "ICU", 1),
    *stay_of(datetime(2020, 1, 20), datetime(2020, 1, 20, 7, 30), visit=2, out="OUT DEAD"),
]


def lines(text):
    return text.splitlines()


def test_stays():
    assert lines(text_of(STAYS, "guo_los")) == [
        "guo_los: Will this hospital stay last at least 7 days?",
        "  2 prediction times: 1 labelled (0 positive), 1 left out",
        "",
        "  prediction time   admission         discharge         length           label",
        "  2020-01-03 23:59  2020-01-03 08:00  2020-01-05 11:00  2 d 03 h 00 min  negative",
        "  2020-01-20 23:59  2020-01-20 00:00  2020-01-20 07:30  0 d 07 h 30 min  left out: discharged on the admission day",
    ]


def test_intensive_care():
    assert lines(text_of(STAYS, "guo_icu"))[3:5] == [
        "  prediction time   admission         discharge         first in intensive care  label",
        "  2020-01-03 23:59  2020-01-03 08:00  2020-01-05 11:00  2020-01-04 09:00         positive",
    ]


def test_readmissions():
    profile = PROFILE.model_copy(update={"follow_up_end": "2020-02-29"})
    head = "  prediction time   admission         discharge         next admission    death             followed until"
    assert lines(text_of(STAYS, "guo_readmission", profile))[3:] == [
        f"{head}       label",
        "  2020-01-05 23:59  2020-01-03 08:00  2020-01-05 11:00  2020-01-20 00:00  2020-01-20 07:30  2020-02-29 23:59:59"
        "  positive",
        "  2020-01-20 23:59  2020-01-20 00:00  2020-01-20 07:30  -                 2020-01-20 07:30  2020-02-29 23:59:59"
        "  left out: discharged by death",
    ]
    alive = lines(text_of(STAYS[:2], "guo_readmission"))
    assert alive[3:] == [
        "  prediction time   admission         discharge         next admission  label",
        "  2020-01-05 23:59  2020-01-03 08:00  2020-01-05 11:00  -               negative",
    ]


def test_results():
    def result(hour, number=None, text=None, unit="mg/dL", code="LOINC/2345-7"):
        value = {"numeric_value": number, "text_value": text, "unit": unit}
        return {"time": datetime(2020, 1, 1, hour), "code": code} | value

    rows = [result(1, 80.0), result(2, 54.1), result(3, 5.0, unit="mmol/L"), result(4, text="normal", unit=None)]
    rows += [result(5), result(6, 61.0, unit="%", code="HERE")]
    codes = pl.DataFrame(
        {
            "code": ["HERE", "LOINC/2345-7"],
            "description": ["bedside glucose", None],
            "parent_codes": [["LOINC/2345-7"], []],
        },
        NO_CODES.schema,
    )
    assert lines(text_of(rows, "lab_hypoglycemia", codes=codes)) == [
        "lab_hypoglycemia: Will the next glucose result be low?",
        "  6 prediction times: 3 labelled (1 positive), 3 left out",
        "",
        "  prediction time   result at         code          result      converted       label",
        "  2020-01-01 00:59  2020-01-01 01:00  LOINC/2345-7  80 mg/dL    4.44444 mmol/L  left out: at the subject's first event time",
        "  2020-01-01 01:59  2020-01-01 02:00  LOINC/2345-7  54.1 mg/dL  3.00556 mmol/L  positive, moderate (grade 2)",
        "  2020-01-01 02:59  2020-01-01 03:00  LOINC/2345-7  5 mmol/L    -               negative",
        "  2020-01-01 03:59  2020-01-01 04:00  LOINC/2345-7  'normal'    -               negative",
        "  2020-01-01 04:59  2020-01-01 05:00  LOINC/2345-7  -           -               left out: without a value",
        "  2020-01-01 05:59  2020-01-01 06:00  HERE          61 %        -               left out: in an unknown unit",
        "  HERE: bedside glucose",
    ]  # fmt: skip


def test_diagnoses():
    rows = [*STAYS, event(datetime(2020, 1, 9), "ICD10CM/I21.4"), event(datetime(2020, 1, 8, 1, 2, 3), "ICD9CM/410")]
    assert lines(text_of(rows, "new_acutemi"))[3:] == [
        "  prediction time   admission         discharge         first diagnosis      code        death             label",
        "  2020-01-05 23:59  2020-01-03 08:00  2020-01-05 11:00  2020-01-08 01:02:03  ICD9CM/410  2020-01-20 07:30  positive",
        "  2020-01-20 23:59  2020-01-20 00:00  2020-01-20 07:30  2020-01-08 01:02:03  ICD9CM/410  2020-01-20 07:30"
        "  left out: after the first diagnosis",
    ]


@pytest.mark.parametrize(
    ("task", "what"),
    [
        ("guo_los", "hospital stay that has ended"),
        ("new_celiac", "hospital stay that has ended"),
        ("lab_anemia", "timed result of this test"),
    ],
)
def test_nothing_to_predict_is_one_sentence_that_names_the_profile(task, what):
    assert lines(text_of([event(datetime(2020, 1, 1), "IN", 1)], task))[1:] == [
        f"  No prediction time: by the profile {PROFILE.name!r} the subject has no {what}."
    ]


# --- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def run(cohort, repository, monkeypatch, tmp_path):
    monkeypatch.chdir(repository)

    def call(*words):
        return CliRunner().invoke(app, ["label", str(cohort.events), "--task", "guo_los", *map(str, words)])

    return call


def test_command_prints_and_writes_nothing(run, cohort):
    before = sorted(cohort.root.rglob("*"))
    found = run("--explain", pl.read_parquet(cohort.splits)["subject_id"][0])
    assert found.exit_code == 0
    assert found.stdout.startswith("guo_los: Will this hospital stay last at least 7 days?\n")
    assert sorted(cohort.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--explain", 48_151_623], "the subject asked for is not in "),
        ([], "give either --out .* or --explain"),
        (["--explain", 1, "--out", "x"], "give either --out .* or --explain"),
        (["--explain", 1, "--settings", "{given: labels}"], "--explain tells how labels are made"),
    ],
)
def test_refusals(run, words, message):
    error = run(*words).exception
    assert isinstance(error, InputError)  # printed as one sentence, exit code 2
    assert re.search(message, str(error))
    assert "48151623" not in str(error)
    assert "\n" not in str(error)


def test_a_damaged_shard_is_named(run, write_meds, tmp_path):
    data = write_meds(tmp_path / "data", {"0": pl.DataFrame({"patient_id": [1]})})
    with pytest.raises(InputError, match=r"data/0\.parquet: the column 'subject_id' is missing\. .*`ehrctx check"):
        explain(data, "simulated", ["guo_los"], Labels(), 1)
