"""From concepts to a data set's codes: by name, through parents, by ICD prefix."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.events.ontology import codes_of

SCHEMA = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)}


def metadata(parents):
    rows = [(code, None, above) for code, above in parents.items()]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def test_by_own_name():
    used = pl.Series(["LOINC/2951-2", "LOINC/2951-20", "LAB//2951-2", "SNOMED/2951-2"])
    assert codes_of({"LOINC": ("2951-2",)}, used, metadata({})) == {"LOINC/2951-2"}


def test_through_parents_over_several_levels():
    codes = metadata(
        {
            "LAB//1": ["LOINC/A"],
            "LAB//2": ["SITE/x", "LOINC/C"],
            "LOINC/C": ["LOINC/B"],
            "LOINC/B": ["LOINC/A"],
            "LAB//3": ["LOINC/Z", None],
            "LAB//4": None,
            "LAB//5": [],
            "LAB//unused": ["LOINC/A"],
        }
    )
    used = pl.Series([f"LAB//{i}" for i in range(1, 7)])
    assert codes_of({"LOINC": ("A",)}, used, codes) == {"LAB//1", "LAB//2"}
    assert codes_of({"LOINC": ("Z", "C")}, used, codes) == {"LAB//2", "LAB//3"}
    assert codes_of({"LOINC": ("Q",)}, used, codes) == set()


def test_icd_codes_are_prefixes_with_and_without_dots():
    used = pl.Series(
        ["ICD10CM/I21.4", "ICD10CM/I214", "ICD10CM/I21", "ICD10CM/I2", "ICD10CM/XI21", "ICD9CM/I21", "I21"]
    )
    both = {"ICD10CM/I21.4", "ICD10CM/I214"}
    assert codes_of({"ICD10CM": ("I21",)}, used, metadata({})) == both | {"ICD10CM/I21"}
    assert codes_of({"ICD10CM": ("I21.4",)}, used, metadata({})) == both
    assert codes_of({"ICD10CM": ("I214",)}, used, metadata({})) == both
    # other systems have no prefixes
    assert codes_of({"SNOMED": ("57",)}, pl.Series(["SNOMED/57054005"]), metadata({})) == set()


def test_icd_prefix_applies_to_parents_too():
    codes = metadata({"DIAGNOSIS//ICD//10//I214": ["ICD10CM/I21.4"], "DIAGNOSIS//ICD//9//41071": ["ICD9CM/410.71"]})
    used = pl.Series(["DIAGNOSIS//ICD//10//I214", "DIAGNOSIS//ICD//9//41071", "DIAGNOSIS//ICD//9//4019"])
    concepts = {"ICD10CM": ("I21",), "ICD9CM": ("410",)}
    assert codes_of(concepts, used, codes) == set(used[:2])


def test_cycles_end():
    codes = metadata({"A/1": ["A/2"], "A/2": ["A/3"], "A/3": ["A/1"], "A/4": ["A/4"]})
    used = pl.Series(["A/1", "A/2", "A/4"])
    assert codes_of({"A": ("3",)}, used, codes) == {"A/1", "A/2"}
    assert codes_of({"A": ("4",)}, used, codes) == {"A/4"}


@given(
    st.dictionaries(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=3)), st.sets(st.integers(0, 9), max_size=3)
)
def test_against_a_depth_first_search(graph, wanted):
    used = pl.Series([f"S/{i}" for i in range(0, 10, 2)])
    codes = metadata({f"S/{c}": [f"S/{p}" for p in above] for c, above in graph.items()})

    def reaches(node, seen):
        return node in wanted or any(reaches(p, seen | {node}) for p in graph.get(node, []) if p not in seen | {node})

    expected = {f"S/{i}" for i in range(0, 10, 2) if reaches(i, set())}
    assert codes_of({"S": tuple(map(str, wanted))}, used, codes) == expected
