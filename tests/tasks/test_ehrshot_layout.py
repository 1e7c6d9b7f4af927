"""The fourteen tasks on a small data set in EHRSHOT's MEDS layout, with labels that were written by hand.

The labels follow the published rules (arXiv 2307.02028, 2412.16178), with what the definitions say of deaths and of the
end of the follow-up; none of them was computed. Codes below the published concepts are reached through the data set's
own `parent_codes`, or else through an Athena download.
"""

import json
from datetime import datetime

import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.label_sets import read_labels, write_labels

# Subject, time, code, number and unit, or text. The end of a visit is an event of its own.
EVENTS = """
1  1950-01-01 00:00  SNOMED/3950001
1  2014-06-01 10:00  SNOMED/267432004
1  2015-03-01 10:00  Visit/IP
1  2015-03-02 08:00  CARE_SITE/7928450
1  2015-03-09 09:00  Visit/IP//END
1  2015-03-10 12:00  ICD10CM/C25.1
1  2015-03-15 14:00  SNOMED/78975002
1  2015-03-20 12:00  Visit/IP
1  2015-03-22 12:00  Visit/IP//END
1  2016-03-08 23:59  SNOMED/401303003
1  2016-08-01 09:00  LOINC/2951-2  140  mmol/L
2  1980-05-05 00:00  SNOMED/3950001
2  2018-01-10 06:00  Visit/IP
2  2018-01-10 20:00  Visit/IP//END
2  2018-01-11 00:00  Visit/IP
2  2018-01-11 05:00  CARE_SITE/7929149
2  2018-01-18 00:00  Visit/IP//END
2  2018-01-18 23:59  ICD10CM/I10
2  2018-01-19 23:59  SNOMED/61715008
2  2018-02-17 23:59  Visit/IP
2  2018-02-18 10:00  HCPCS/G8007
2  2018-02-20 08:00  CARE_SITE/7930934
2  2018-02-20 08:00  Visit/IP//END
2  2018-03-01 00:00  ICD9CM/272.4
2  2018-03-10 12:00  SNOMED/68815009
3  1990-01-01 00:00  SNOMED/3950001
3  2019-01-02 08:00  LOINC/777-3  150  K/uL
3  2019-01-02 08:00  LOINC/2823-3  5.5  mmol/L
3  2019-01-02 08:00  SNOMED/33747003  70  mg/dL
3  2019-01-02 08:00  LOINC/2951-2  135  mmol/L
3  2019-01-02 08:00  LOINC/718-7  6.9  g/dL
3  2019-01-02 09:00  LOINC/49497-1  99  10^3/uL
3  2019-01-02 09:00  LOINC/6298-4  6.1  mEq/L
3  2019-01-02 09:00  LOINC/14743-9  2.9  mmol/L
3  2019-01-02 09:00  LOINC/2947-0  130  mmol/L
3  2019-01-02 09:00  LOINC/718-7  12  g/dL
3  2019-01-02 10:00  LOINC/777-3  adequate
3  2019-01-02 10:00  LOINC/75940-7  31  mg/dL
3  2019-01-02 10:00  LOINC/14749-6  3.5  mmol/L
3  2019-01-02 10:00  LOINC/2951-2  124  mmol/L
3  2019-01-02 10:00  LOINC/718-7  119  g/L
3  2019-01-02 11:00  LOINC/2345-7  62  mg/dL
3  2019-01-02 11:00  LOINC/5792-7  10  mg/dL
3  2019-01-02 11:00  LOINC/2951-2  136  mmol/L
3  2019-01-02 11:00  LOINC/718-7
4  2020-02-02 02:02  LOINC/2951-2  120  mmol/L
4  2020-02-02 02:02  Visit/IP
4  2020-02-02 02:03  LOINC/2951-2  129  mmol/L
4  2020-02-10 02:00  Visit/IP//END
4  2020-02-10 02:00  Condition Type/OMOP4822053
"""

# Subject, prediction time, label: yes or no, or the grade of a result.
LABELS = {
    "guo_los": """
        1  2015-03-01 23:59  yes    8 days less an hour
        1  2015-03-20 23:59  no     2 days
        2  2018-01-11 23:59  yes    7 days to the minute; the stay of January 10 ended on its first day
        2  2018-02-17 23:59  no     2 days
        4  2020-02-02 23:59  yes    7 days and 23:58 hours""",
    "guo_icu": """
        1  2015-03-01 23:59  yes    on the second day
        1  2015-03-20 23:59  no     never
        2  2018-02-17 23:59  yes    at the discharge; the stay of January 11 began in intensive care
        4  2020-02-02 23:59  no     never""",
    "guo_readmission": """
        1  2015-03-09 23:59  yes    on March 20
        1  2015-03-22 23:59  no     never
        2  2018-01-10 23:59  yes    1 minute later
        2  2018-01-18 23:59  yes    30 days later; the last discharge was followed for 18 days, and subject 4 died""",
    "lab_thrombocytopenia": """
        3  2019-01-02 07:59  0      150 is not below 150
        3  2019-01-02 08:59  2      99, in EHRSHOT's group of platelet counts
        3  2019-01-02 09:59  0      adequate""",
    "lab_hyperkalemia": """
        3  2019-01-02 07:59  0      5.5 is not above 5.5
        3  2019-01-02 08:59  2      6.1; a result in mg/dL has no label""",
    "lab_hypoglycemia": """
        3  2019-01-02 07:59  1      70 mg/dL are 3.89 mmol/L
        3  2019-01-02 08:59  3      2.9, in EHRSHOT's group of glucose in blood
        3  2019-01-02 09:59  1      3.5 is not below 3.5
        3  2019-01-02 10:59  2      62 mg/dL are 3.44 mmol/L; glucose in urine is another test""",
    "lab_hyponatremia": """
        1  2016-08-01 08:59  0      140
        3  2019-01-02 07:59  1      135 is at most 135
        3  2019-01-02 08:59  1      130 is not below 130
        3  2019-01-02 09:59  3      124
        3  2019-01-02 10:59  0      136
        4  2020-02-02 02:02  2      129; the result at the first event has no label""",
    "lab_anemia": """
        3  2019-01-02 07:59  3      69 g/L
        3  2019-01-02 08:59  0      120 is not below 120
        3  2019-01-02 09:59  1      119; the last result has no value""",
    "new_hypertension": """
        1  2015-03-09 23:59  yes    malignant essential hypertension, 5 days later
        2  2018-01-10 23:59  yes    8 days later
        2  2018-01-18 23:59  no     at the prediction time itself: not more than 1 day later
        4  2020-02-10 23:59  no     never""",
    "new_hyperlipidemia": """
        2  2018-01-10 23:59  yes    on March 1, for all three; subject 1 had it before the first stay
        2  2018-01-18 23:59  yes
        2  2018-02-20 23:59  yes
        4  2020-02-10 23:59  no""",
    "new_pancan": """
        1  2015-03-09 23:59  no     within the first day
        2  2018-01-10 23:59  no
        2  2018-01-18 23:59  no
        2  2018-02-20 23:59  no     the record ends: negative, as published
        4  2020-02-10 23:59  no""",
    "new_celiac": """
        1  2015-03-09 23:59  no
        1  2015-03-22 23:59  no
        2  2018-01-10 23:59  yes    9 days later
        2  2018-01-18 23:59  no     1 day later to the minute: not more than 1 day
        4  2020-02-10 23:59  no""",
    "new_lupus": """
        1  2015-03-09 23:59  no
        1  2015-03-22 23:59  no
        2  2018-01-10 23:59  yes    on March 10
        2  2018-01-18 23:59  yes
        2  2018-02-20 23:59  yes
        4  2020-02-10 23:59  no""",
    "new_acutemi": """
        1  2015-03-09 23:59  yes    365 days later to the minute
        1  2015-03-22 23:59  yes
        2  2018-01-10 23:59  yes    by a code of HCPCS that is mapped to the disease
        2  2018-01-18 23:59  yes
        4  2020-02-10 23:59  no""",
}

# Below what each code lies; of SNOMED/267432004, two levels.
IS_A = {
    "SNOMED/78975002": "SNOMED/59621000",
    "SNOMED/13644009": "SNOMED/55822004",
    "SNOMED/267432004": "SNOMED/13644009",
    "SNOMED/93715005": "SNOMED/372003004",
    "SNOMED/61715008": "SNOMED/396331005",
    "SNOMED/68815009": "SNOMED/55464009",
    "SNOMED/401303003": "SNOMED/57054005",
    "LOINC/49497-1": "LOINC/LG32892-8",
    "LOINC/75940-7": "LOINC/LG10990-6",
    "LOINC/14743-9": "LOINC/LP416145-3",
}
MAPS_TO = {"HCPCS/G8007": "SNOMED/57054005", "ICD10CM/C25.1": "SNOMED/93715005", "ICD10CM/I10": "SNOMED/59621000"}
STRANGERS = ("LOINC/5792-7", "SNOMED/3950001")


def rows_of(text):
    return [line.split("  ") for line in (line.strip() for line in text.strip().splitlines()) if line]


def events():
    rows = []
    for subject, time, code, *value in rows_of(EVENTS):
        number, unit = (float(value[0]), value[1]) if len(value) == 2 else (None, None)
        text = value[0] if len(value) == 1 else None
        rows.append((int(subject), datetime.fromisoformat(time), code, number, text, unit, "table"))
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    schema |= {"text_value": pl.String, "unit": pl.String, "omop_table": pl.String}
    return pl.DataFrame(rows, schema, orient="row")


def labels_by_hand(task):
    is_graded = task.startswith("lab_")
    rows = []
    for subject, time, answer, *_ in rows_of(LABELS[task]):
        grade = int(answer) if is_graded else None
        rows.append((int(subject), datetime.fromisoformat(time), grade > 0 if is_graded else answer == "yes", grade))
    schema = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "boolean_value": pl.Boolean}
    return pl.DataFrame(rows, schema | {"integer_value": pl.Int64}, orient="row")


def codes(parents):
    """metadata/codes.parquet as EHRSHOT writes it: no descriptions, and no parents unless they are given."""
    names = sorted({*events()["code"], *parents})
    table = {"code": names, "description": [""] * len(names), "parent_codes": [parents.get(name) for name in names]}
    return pl.DataFrame(table, {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})


@pytest.fixture
def ehrshot(write_meds, tmp_path):
    """A function that writes the data set as the release lays it out, with these `parent_codes`."""

    def write(parents):
        splits = {1: "train", 2: "train", 3: "tuning", 4: "held_out"}
        folder = write_meds(tmp_path / "ehrshot", {"data": events()}, splits, codes(parents))
        (folder / "metadata" / "dataset.json").write_text(
            json.dumps({"dataset_name": "EHRSHOT", "meds_version": "0.3.3"})
        )
        for task in LABELS:  # a laboratory task has grades and no boolean
            labels, file = labels_by_hand(task), folder / "labels" / task / "labels.parquet"
            file.parent.mkdir(parents=True)
            if task.startswith("lab_"):
                labels = labels.with_columns(boolean_value=pl.lit(None, pl.Boolean))
            labels.write_parquet(file)
        return folder

    return write


@pytest.fixture
def athena(write_athena, tmp_path):
    """A function that writes the same hierarchy as an Athena download, with the ancestors or with `Is a` alone."""

    def write(with_ancestors):
        names = sorted({*IS_A, *IS_A.values(), *MAPS_TO, *STRANGERS, "LOINC/718-7", "LOINC/777-3"})
        number = {name: i for i, name in enumerate(names, start=1)}
        concept = [
            (i, '5" name', "", *name.split("/")[:1], "", "", name.split("/")[1], 0, 0, "") for name, i in number.items()
        ]
        related = [(number[one], number[two], "Is a", 0, 0, "") for one, two in IS_A.items()]
        related += [(number[one], number[two], "Maps to", 0, 0, "") for one, two in MAPS_TO.items()]
        related += [(number["LOINC/5792-7"], number["LOINC/LP416145-3"], "Has component", 0, 0, "")]
        grand = ("SNOMED/267432004", "SNOMED/55822004")
        above = [(number[name], number[name], 0, 0) for name in names]
        above += [(number[two], number[one], 1, 1) for one, two in (*IS_A.items(), grand)]
        files = {"CONCEPT.csv": concept, "CONCEPT_RELATIONSHIP.csv": related}
        return write_athena(tmp_path / "athena", files | ({"CONCEPT_ANCESTOR.csv": above} if with_ancestors else {}))

    return write


@pytest.fixture
def labelled(repository, tmp_path):
    def label(data, ontology=None, choices=Labels()):  # noqa: B008 (frozen)
        profile = str(repository / "pipelines" / "datasets" / "ehrshot.yaml")
        write_labels(data, profile, list(LABELS), choices, tmp_path / "labels", ontology)
        return read_labels(tmp_path / "labels")

    return label


@pytest.mark.parametrize("way", ["parent_codes", "ancestors", "is_a"])
def test_every_label_is_the_one_written_by_hand(ehrshot, athena, labelled, way):
    parents = {code: [above] for code, above in (IS_A | MAPS_TO).items()} if way == "parent_codes" else {}
    ontology = None if way == "parent_codes" else athena(way == "ancestors")
    data = ehrshot(parents)
    made = labelled(data, ontology)
    for task in LABELS:
        assert made[task].rows() == labels_by_hand(task).rows(), task
    given = labelled(data, choices=Labels(given=str(data / "labels")))
    assert all(made[task].equals(given[task]) for task in LABELS)


def test_without_a_hierarchy_the_codes_below_a_concept_are_not_found(ehrshot, labelled):
    made = labelled(ehrshot({}))
    differ = {task for task in LABELS if not made[task].equals(labels_by_hand(task))}
    assert differ == {
        "lab_thrombocytopenia", "lab_hypoglycemia",
        "new_hypertension", "new_hyperlipidemia", "new_celiac", "new_lupus", "new_acutemi",
    }  # fmt: skip


def test_the_release_itself_says_of_no_stay_when_it_ended(ehrshot, labelled):
    data = ehrshot({})
    file = data / "data" / "data.parquet"
    pl.read_parquet(file).filter(pl.col("code") != "Visit/IP//END").write_parquet(file)
    with pytest.raises(InputError, match="'guo_los' finds no hospital stay: no event of `discharge` follows"):
        labelled(data)
