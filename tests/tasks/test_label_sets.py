"""Label files: what a folder holds, the draw of prediction times, and definitions or profiles that do not serve."""

import hashlib
import json
import struct
from datetime import datetime, timedelta

import polars as pl
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.artifacts import MANIFEST
from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.profile import DatasetProfile
from ehrctx.study import Labels
from ehrctx.tasks.definition import load_definition
from ehrctx.tasks.label_sets import limit_times, read_labels, write_labels

START = datetime(2020, 1, 1)


def labels_of(pairs):
    """Labels at (subject, hour)."""
    rows = [(s, START + timedelta(hours=h), i % 2 == 0, i) for i, (s, h) in enumerate(sorted(pairs))]
    schema = {
        "subject_id": pl.Int64,
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean,
        "integer_value": pl.Int64,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def times_of(labels):
    return set(labels.select("subject_id", "prediction_time").rows())


def kept_by_hash(labels, limit, seed):
    """The first `limit` times of each subject by SHA-256 of (seed, subject, microseconds since 1970)."""
    kept = set()
    for subject in set(labels["subject_id"]):
        times = {time for s, time in times_of(labels) if s == subject}

        def draw(time, subject=subject):
            since = (time - datetime(1970, 1, 1)) // timedelta(microseconds=1)
            return hashlib.sha256(
                struct.pack(">q", seed) + struct.pack(">q", subject) + struct.pack(">q", since)
            ).digest()

        kept |= {(subject, time) for time in sorted(times, key=draw)[:limit]}
    return kept


pairs = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), max_size=50)


@given(pairs, st.integers(1, 5), st.integers(0, 99))
def test_at_most_so_many_times_per_subject_all_labels_of_a_time_together(drawn, limit, seed):
    labels = labels_of(drawn)
    kept = limit_times(labels, limit, seed)
    times = times_of(kept)
    assert times == kept_by_hash(labels, limit, seed)
    for subject in set(labels["subject_id"]):
        n = len({t for s, t in times_of(labels) if s == subject})
        assert len({t for s, t in times if s == subject}) == min(n, limit)
    assert kept.rows() == [row for row in labels.rows() if row[:2] in times]


@given(pairs, pairs, st.integers(1, 4))
def test_tasks_with_the_same_times_keep_the_same_ones(drawn, extra, limit):
    one = labels_of(drawn)
    other = labels_of(drawn + drawn).with_columns(boolean_value=~pl.col("boolean_value"))
    assert times_of(limit_times(one, limit, 3)) == times_of(limit_times(other, limit, 3))
    more = labels_of(drawn + [(s + 10, h) for s, h in extra])  # other subjects change nothing
    assert times_of(limit_times(one, limit, 3)) <= times_of(limit_times(more, limit, 3))


def test_the_draw_is_even_and_depends_on_the_seed():
    labels = labels_of([(s, h) for s in range(2000) for h in range(4)])
    hours = limit_times(labels, 1, 0)["prediction_time"].dt.hour()
    counts = [int((hours == h).sum()) for h in range(4)]
    assert sum(counts) == 2000
    assert all(abs(n - 500) < 4 * (2000 * 0.25 * 0.75) ** 0.5 for n in counts)
    assert times_of(limit_times(labels, 1, 0)) != times_of(limit_times(labels, 1, 1))


def profile_file(repository):
    return str(repository / "pipelines" / "datasets" / "simulated.yaml")


@pytest.fixture(scope="module")
def unlimited(cohort, repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("labels") / "all"
    facts = write_labels(cohort.events, profile_file(repository), ["lab_hyponatremia", "guo_los"], Labels(), out)
    return out, facts


def test_files_and_facts(cohort, unlimited):
    out, facts = unlimited
    names = ["guo_los.parquet", "history.parquet", "lab_hyponatremia.parquet", MANIFEST]
    assert sorted(p.name for p in out.iterdir()) == names
    assert json.loads((out / MANIFEST).read_text())["facts"] == facts
    for task, labels in read_labels(out).items():
        assert facts[task]["labels"] == labels.height
        assert facts[task]["positive"] == labels["boolean_value"].to_list().count(True)
        assert facts[task]["question"].endswith("?")
        keys = labels.select("subject_id", "prediction_time").rows()
        assert keys == sorted(keys)
        assert labels.columns[:3] == ["subject_id", "prediction_time", "boolean_value"]


def test_labels_are_read_in_the_studys_order(unlimited):
    assert list(read_labels(unlimited[0])) == ["lab_hyponatremia", "guo_los"]


def test_limit_applies_to_laboratory_tasks_and_is_counted(cohort, unlimited):
    whole, limited = read_labels(unlimited[0]), read_labels(cohort.labels)
    facts = json.loads((cohort.labels / MANIFEST).read_text())["facts"]
    assert whole["guo_los"].equals(limited["guo_los"])
    lab = limited["lab_hyponatremia"]
    assert times_of(lab) == kept_by_hash(whole["lab_hyponatremia"], 2, 0)
    assert max(sum(s == subject for s, _ in times_of(lab)) for subject in set(lab["subject_id"])) == 2
    left_out = facts["lab_hyponatremia"]["left_out"]["beyond max_times_per_subject"]
    assert left_out == whole["lab_hyponatremia"].height - lab.height > 0
    assert "beyond max_times_per_subject" not in facts["guo_los"]["left_out"]


def test_sharding_leaves_no_trace(cohort, repository, unlimited, tmp_path, write_meds):
    events = pl.read_parquet(cohort.events / "data" / "00000.parquet")
    shards = {str(i): events.filter(pl.col("subject_id") % 3 == i) for i in range(3)} | {"empty": events.clear()}
    data = write_meds(tmp_path / "cut", shards, codes=pl.read_parquet(cohort.events / "metadata" / "codes.parquet"))
    facts = write_labels(data, profile_file(repository), ["lab_hyponatremia", "guo_los"], Labels(), tmp_path / "labels")
    assert facts == unlimited[1]
    for task, labels in read_labels(tmp_path / "labels").items():
        assert labels.equals(read_labels(unlimited[0])[task])


def test_shipped_definitions_are_named_like_their_files(repository):
    for file in (repository / "ehrctx" / "tasks" / "definitions").glob("*.yaml"):
        assert load_definition(file.stem).task == load_definition(str(file)).task == file.stem


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match=r"no task 'guo_lss' .*did you mean 'guo_los'\?"):
        load_definition("guo_lss")


STAY = {"task": "t", "family": "stay", "question": "?", "at_least_days": 7}
LABORATORY = {
    "task": "t",
    "family": "laboratory",
    "question": "?",
    "result": {"LOINC": ["1"]},
    "unit": "u",
    "conversions": {"u": 1},
    "abnormal": "above",
    "thresholds": [1, 2, 3],
}
ICU = {"task": "t", "family": "icu", "question": "?"}
READMISSION = {"task": "t", "family": "readmission", "question": "?", "at_least_minutes": 1, "at_most_days": 30}
DIAGNOSIS = {
    "task": "t",
    "family": "diagnosis",
    "question": "?",
    "diagnosis": {"ICD10CM": ["I10"]},
    "within_days": [1, 365],
}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (STAY | {"task": "macro"}, "'macro' is the name of a mean over tasks"),
        (STAY | {"task": "history"}, "'history' is the name of a file beside the labels"),
        (STAY | {"family": "stya"}, r"no task family 'stya'; did you mean 'stay'\?"),
        ({k: v for k, v in STAY.items() if k != "family"}, "no task family None"),
        (STAY | {"family": ["stay"]}, "no task family"),
        (STAY | {"at_leastdays": 3}, r"unknown key `at_leastdays`; did you mean 'at_least_days'\?"),
        (STAY | {"at_least_days": 0}, "`at_least_days`"),
        ({k: v for k, v in STAY.items() if k != "question"}, "the key `question` is missing"),
        (LABORATORY | {"thresholds": [1, 2]}, "`?thresholds"),
        (LABORATORY | {"abnormal": "over"}, "`abnormal`"),
        (LABORATORY | {"result": ["LOINC/1"]}, "`result`"),
        (LABORATORY | {"conversions": {"u": "one"}}, "`conversions.u`"),
        (LABORATORY | {"conversions": {"u": 0}}, "`conversions.u`"),
        (LABORATORY | {"thresholds": [1, 3, 2]}, "`abnormal: above` the thresholds must rise .* they are 1, 3, 2"),
        (LABORATORY | {"thresholds": [2, 2, 3]}, "must rise"),
        (LABORATORY | {"thresholds": [3, 2, 1]}, "must rise"),
        (LABORATORY | {"abnormal": "below"}, "`abnormal: below` the thresholds must fall .* they are 1, 2, 3"),
        (LABORATORY | {"abnormal": "at_most"}, "`abnormal: at_most` the thresholds must fall"),
        (LABORATORY | {"abnormal": "below", "thresholds": [3, 1, 1]}, "must fall"),
        (LABORATORY | {"thresholds": [1, 2, float("nan")]}, "must rise"),
        (DIAGNOSIS | {"within_days": [1]}, "within_days"),
        (
            DIAGNOSIS | {"within_days": [365, 1]},
            r"`within_days` is \(more than, at most\) .*; 365, 1 is no such window",
        ),
        (DIAGNOSIS | {"within_days": [1, 1]}, "no such window"),
        (DIAGNOSIS | {"within_days": [-1, 1]}, "no such window"),
        (READMISSION | {"at_least_minutes": -1}, "`at_least_minutes`"),
        (READMISSION | {"at_most_days": 0}, "`at_most_days`"),
        (READMISSION | {"at_least_minutes": 1440, "at_most_days": 1}, "no time is at least 1440 minutes .* 1 days"),
        ({k: v for k, v in READMISSION.items() if k != "at_most_days"}, "the key `at_most_days` is missing"),
        (ICU | {"at_least_days": 7}, "unknown key `at_least_days`"),
        (STAY | {"censored": "negative"}, "unknown key `censored`"),
        (DIAGNOSIS | {"censored": "positive"}, "`censored`"),
        (DIAGNOSIS | {"diagnosis": {"ICD10CM": "I10"}}, "`diagnosis"),
        (["stay"], "expected keys and values"),
        (None, "no task family None|expected keys and values"),
    ],
)
def test_bad_definition_is_refused(tmp_path, values, words):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=words) as caught:
        load_definition(str(file))
    assert str(file) in str(caught.value)


TWICE = b"task: t\nfamily: stay\nquestion: long?\nat_least_days: 7\nat_least_days: 8\n"


@pytest.mark.parametrize("content", [b"task: [", b"task: \xff\xfe", TWICE])
def test_definition_that_is_not_yaml_or_text(tmp_path, content):
    file = tmp_path / "own.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"own\.yaml"):
        load_definition(str(file))


@pytest.mark.parametrize(
    ("values", "defaults"),
    [
        (STAY, {}),
        (ICU, {}),
        (READMISSION, {"censored": "left_out"}),
        (READMISSION | {"censored": "negative"}, {}),
        (LABORATORY, {}),
        (DIAGNOSIS, {"censored": "negative"}),
        (DIAGNOSIS | {"censored": "left_out"}, {}),
    ],
)
def test_own_definition_from_a_file(tmp_path, values, defaults):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(values))
    assert json.loads(load_definition(str(file)).model_dump_json(exclude={"source"})) == values | defaults


NEEDS = {
    "guo_los": ("admission", "discharge"),
    "guo_icu": ("admission", "discharge", "icu_admission"),
    "guo_readmission": ("admission", "discharge", "death", "follow_up_end"),
    "new_acutemi": ("admission", "discharge"),
}


@pytest.mark.parametrize(("task", "key"), [(task, key) for task, keys in NEEDS.items() for key in keys])
def test_profile_without_a_key_that_the_task_needs_is_refused_by_name(cohort, repository, tmp_path, task, key):
    """No family may end with no label, or with labels that mean something else, and no word."""
    values = yaml.safe_load((repository / "pipelines" / "datasets" / "simulated.yaml").read_text())
    values[key] = None if key == "follow_up_end" else []
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=rf"'{task}' needs `{key}` in the profile 'simulated'"):
        write_labels(cohort.events, str(file), ["lab_hyponatremia", task], Labels(), tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("key", ["death", "follow_up_end"])
def test_diagnoses_need_the_follow_up_where_censored_ones_are_left_out(cohort, repository, tmp_path, key):
    values = yaml.safe_load((repository / "pipelines" / "datasets" / "simulated.yaml").read_text())
    values[key] = None if key == "follow_up_end" else []
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump(values))
    assert write_labels(cohort.events, str(file), ["new_acutemi"], Labels(), tmp_path / "published")
    with pytest.raises(InputError, match=rf"'new_acutemi' needs `{key}` in the profile 'simulated'"):
        write_labels(cohort.events, str(file), ["new_acutemi"], Labels(censored="left_out"), tmp_path / "labels")


@pytest.mark.parametrize("censored", ["published", "negative", "left_out"])
def test_one_key_of_the_study_rules_every_definition_that_has_it(cohort, repository, tmp_path, censored):
    tasks = ["guo_readmission", "new_acutemi", "guo_los"]
    facts = write_labels(cohort.events, profile_file(repository), tasks, Labels(censored=censored), tmp_path / "labels")
    manifest = json.loads((tmp_path / "labels" / MANIFEST).read_text())
    rules = [task.get("censored") for task in manifest["settings"]["tasks"]]
    published = ["left_out", "negative", None]
    assert rules == (published if censored == "published" else [censored, censored, None])
    reasons = [
        f"followed for less than {days} days" in facts[task]["left_out"]
        for task, days in zip(tasks, (30, 365, 0), strict=True)
    ]
    assert reasons == [rule == "left_out" for rule in rules]


@pytest.mark.parametrize("key", ["admission", "discharge", "icu_admission", "follow_up_end"])
def test_keys_that_are_not_in_the_profile_are_empty(key):
    assert not getattr(DatasetProfile(name="bare"), key)
    assert DatasetProfile(name="bare").death == ("MEDS_DEATH",)


@pytest.mark.parametrize("text", ["2024-12-31", "'2024-12-31'", "record_end", "death", "null"])
def test_follow_up_end_as_yaml_gives_it(tmp_path, text):
    file = tmp_path / "own.yaml"
    file.write_text(f"name: own\nfollow_up_end: {text}\n")
    profile = load(DatasetProfile, file)
    assert profile.follow_up_end == (None if text == "null" else text.strip("'"))
    assert json.loads(json.dumps(profile.model_dump())) == json.loads(profile.model_dump_json())


@pytest.mark.parametrize("text", ["recordend", "31.12.2024", "'2024-13-01'", "2024", "2024-12-31 10:00:00", "[]", "''"])
def test_follow_up_end_that_is_none_is_refused(tmp_path, text):
    file = tmp_path / "own.yaml"
    file.write_text(f"name: own\nfollow_up_end: {text}\n")
    with pytest.raises(
        InputError, match=r"own\.yaml: `follow_up_end`: .* is not record_end, death or a date YYYY-MM-DD"
    ):
        load(DatasetProfile, file)


def test_manifest_holds_definitions_profile_and_reasons(cohort, repository, tmp_path):
    tasks = ["guo_readmission", "guo_icu"]
    facts = write_labels(cohort.events, profile_file(repository), tasks, Labels(), tmp_path / "labels")
    manifest = json.loads((tmp_path / "labels" / MANIFEST).read_text())
    assert manifest["facts"] == facts
    assert manifest["settings"]["tasks"] == [json.loads(load_definition(t).model_dump_json()) for t in tasks]
    assert manifest["settings"]["profile"]["follow_up_end"] == "2024-12-31"
    assert list(facts["guo_readmission"]["left_out"]) == [
        "discharged by death",
        "readmitted on the discharge day",
        "discharged while another stay was open",
        "followed for less than 30 days",
    ]


def test_laboratory_tasks_need_no_visits(cohort, tmp_path, unlimited):
    file = tmp_path / "bare.yaml"
    file.write_text(yaml.safe_dump({"name": "bare", "unit_column": "unit"}))
    facts = write_labels(cohort.events, str(file), ["lab_hyponatremia"], Labels(), tmp_path / "labels")
    assert facts["lab_hyponatremia"] == unlimited[1]["lab_hyponatremia"]


def test_two_definitions_of_one_name(cohort, repository, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(STAY | {"task": "guo_los"}))
    with pytest.raises(InputError, match="two definitions are both called 'guo_los'"):
        write_labels(cohort.events, profile_file(repository), ["guo_los", str(file)], Labels(), tmp_path / "labels")
