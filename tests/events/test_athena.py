"""What an Athena download adds to `parent_codes`: descendants, mapped codes, either file, and what is refused."""

import csv
import gzip
import io

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.ontology import COLUMNS, athena_codes, athena_files, athena_inventory, codes_of, described

DATES = ("19700101", "20991231")
NO_CODES = pl.DataFrame(schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)})


@pytest.fixture(scope="session")
def athena(write_athena):
    """A function that writes a download, with the file of ancestors or without."""

    def write(folder, concepts, is_a, maps_to=(), ancestors=True, relationships=True, subsumes=False):
        rows = {"CONCEPT.csv": [(i, name, "", v, "", "S", code, *DATES, "") for i, (v, code, name) in concepts.items()]}
        if ancestors:
            rows["CONCEPT_ANCESTOR.csv"] = [(a, d, 0, 0) for a, d in closure(concepts, is_a)]
        if relationships:
            pairs = [(parent, child, "Subsumes") if subsumes else (child, parent, "Is a") for child, parent in is_a]
            pairs += [(one, two, "Maps to") for one, two in (*maps_to, *((i, i) for i in concepts))]
            pairs += [(two, one, "Mapped from") for one, two in maps_to]
            rows["CONCEPT_RELATIONSHIP.csv"] = [(*pair, *DATES, "") for pair in pairs]
        return write_athena(folder, rows)

    return write


def closure(concepts, is_a):
    """(ancestor, descendant), each concept its own descendant, by walking up from each."""
    found = set()
    for start in concepts:
        todo, seen = [start], set()
        while todo:
            here = todo.pop()
            if here not in seen:
                seen.add(here)
                todo += [parent for child, parent in is_a if child == here]
        found |= {(above, start) for above in seen}
    return sorted(found)


CONCEPTS = {
    1: ("SNOMED", "59621000", "Essential hypertension"),
    2: ("SNOMED", "78975002", 'Malignant "essential" hypertension'),
    3: ("SNOMED", "71874008", "Benign essential hypertension"),
    4: ("SNOMED", "31992008", "Secondary hypertension"),
    5: ("SNOMED", "38341003", "Hypertensive disorder"),
    6: ("ICD10CM", "I10", "Essential (primary) hypertension"),
    7: ("ICD9CM", "401.0", "Malignant essential hypertension"),
    8: ("ICD10CM", "I15.0", "Renovascular hypertension"),
    9: ("SITE", "HTN", "our own code"),
    10: ("SNOMED", "1201005", "Benign essential hypertension, of old age"),
}
IS_A = [(2, 1), (3, 1), (10, 3), (1, 5), (4, 5)]
MAPS_TO = [(6, 1), (7, 2), (8, 4), (9, 10)]
BELOW = {"SNOMED/59621000", "SNOMED/78975002", "SNOMED/71874008", "SNOMED/1201005"}
MAPPED = {"ICD10CM/I10", "ICD9CM/401.0", "ICD9CM/4010", "SITE/HTN"}


@pytest.mark.parametrize("how", ["ancestors", "is_a", "subsumes", "empty_ancestors"])
def test_descendants_and_what_maps_to_them(athena, write_athena, tmp_path, how):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO, ancestors=how == "ancestors", subsumes=how == "subsumes")
    if how == "empty_ancestors":
        write_athena(folder, {"CONCEPT_ANCESTOR.csv": []})
    found = athena_codes(folder, {"SNOMED/59621000", "SNOMED/none"})
    assert found.schema == NO_CODES.schema
    assert set(found["code"]) == BELOW | MAPPED
    assert {tuple(parents) for parents in found["parent_codes"]} == {("SNOMED/59621000",)}
    names = dict(found.select("code", "description").rows())
    assert names["SNOMED/78975002"] == 'Malignant "essential" hypertension'
    assert names["ICD9CM/4010"] == names["ICD9CM/401.0"] == "Malignant essential hypertension"


def test_ancestors_alone_know_no_mapping(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO, relationships=False)
    assert list(athena_files(folder)) == ["CONCEPT.csv", "CONCEPT_ANCESTOR.csv"]
    assert set(athena_codes(folder, ["SNOMED/59621000"])["code"]) == BELOW


def test_invalid_relationships_do_not_count(athena, write_athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, [], ancestors=False)
    rows = [(2, 1, "Is a", *DATES, "D"), (6, 1, "Maps to", *DATES, "D"), (3, 1, "Is a", *DATES, "")]
    write_athena(folder, {"CONCEPT_RELATIONSHIP.csv": rows})
    assert set(athena_codes(folder, ["SNOMED/59621000"])["code"]) == {"SNOMED/59621000", "SNOMED/71874008"}


def test_two_concepts_are_told_apart_and_nested_ones_share(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO)
    found = athena_codes(folder, ["SNOMED/59621000", "SNOMED/38341003", "SNOMED/31992008"])
    parents = {code: set(above) for code, above in found.select("code", "parent_codes").rows()}
    assert parents["ICD10CM/I15.0"] == {"SNOMED/31992008", "SNOMED/38341003"}
    assert parents["ICD9CM/401.0"] == {"SNOMED/59621000", "SNOMED/38341003"}


def test_a_data_sets_own_parents_lead_on_into_the_ontology(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO)
    own = pl.DataFrame(
        [("DX//1", None, ["SNOMED/1201005"]), ("DX//2", None, ["ICD10CM/I150"])], NO_CODES.schema, orient="row"
    )
    codes = pl.concat([own, athena_codes(folder, ["SNOMED/59621000"])])
    used = pl.Series(["DX//1", "DX//2", "ICD9CM/4010", "SNOMED/71874008", "SNOMED/38341003"])
    assert codes_of({"SNOMED": ("59621000",)}, used, codes) == {"DX//1", "ICD9CM/4010", "SNOMED/71874008"}


pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=15)


@given(pairs, pairs, st.sets(st.integers(1, 9), min_size=1, max_size=3), st.booleans())
def test_either_file_against_a_walk(athena, tmp_path_factory, links, maps_to, roots, subsumes):
    """Any graph: circles too, which a released vocabulary has not."""
    concepts = {i: ("S" if i < 7 else "T", str(i), f"c{i}") for i in range(1, 10)}
    expected = {(a, d) for a, d in closure(concepts, links) if a in roots}
    expected |= {(a, one) for a, d in expected for one, two in maps_to if two == d}
    name = {i: f"{vocabulary}/{code}" for i, (vocabulary, code, _) in concepts.items()}
    for ancestors in (True, False):
        folder = tmp_path_factory.mktemp("athena")
        athena(folder, concepts, links, maps_to, ancestors=ancestors, subsumes=subsumes)
        found = athena_codes(folder, {name[i] for i in roots}).explode("parent_codes")
        assert set(found.select("parent_codes", "code").rows()) == {(name[a], name[d]) for a, d in expected}


# --- what is refused, by file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("removed", "words"),
    [
        (["CONCEPT.csv"], "has no CONCEPT.csv"),
        (["CONCEPT_ANCESTOR.csv", "CONCEPT_RELATIONSHIP.csv"], "has neither CONCEPT_ANCESTOR.csv nor CONCEPT_RELATION"),
    ],
)
def test_missing_files(athena, tmp_path, removed, words):
    folder = athena(tmp_path / "athena", CONCEPTS, IS_A)
    for name in removed:
        (folder / name).unlink()
    with pytest.raises(InputError, match=words):
        athena_files(folder)
    with pytest.raises(InputError, match=r"has no CONCEPT\.csv"):
        athena_codes(tmp_path / "nowhere", ["SNOMED/59621000"])


@pytest.mark.parametrize("name", ["CONCEPT.csv", "CONCEPT_ANCESTOR.csv", "CONCEPT_RELATIONSHIP.csv"])
def test_files_that_are_not_as_athena_ships_them(athena, tmp_path, name):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO)
    text = (folder / name).read_text()
    for changed, sentence in (
        (b"", f"{folder / name} is empty"),
        (text.replace("concept_", "c_").encode(), rf"{name}: the column '\w+' is missing\. Give the file as Athena"),
        (text.encode("utf-16"), f"{name} is not UTF-8 text, it looks like UTF-16"),
        (
            text.encode() + b"1\xff" + b"\t2" * text.split("\n")[0].count("\t") + b"\n",
            rf"{name}, row {text.count(chr(10))}: this row is not UTF-8 text",
        ),
        (
            text.encode().rstrip(b"\n").rpartition(b"\t")[0],
            rf"{name}: its last row has \d fields where the header has \d",
        ),
        (gzip.compress(text.encode() * 50)[:-30], rf"{name} is not a readable CSV file: it is damaged or cut off"),
    ):
        (folder / name).write_bytes(changed)
        with pytest.raises(InputError, match=sentence):
            athena_codes(folder, ["SNOMED/59621000"])


SAVED_AGAIN = {
    "gzip": lambda name, text: (f"{name}.gz", gzip.compress(text.encode())),
    "gzip without the suffix": lambda name, text: (name, gzip.compress(text.encode())),
    "small letters": lambda name, text: (name.lower(), text.encode()),
    "small letters and gzip": lambda name, text: (f"{name.lower()}.GZ", gzip.compress(text.encode())),
    "a byte order mark": lambda name, text: (name, text.encode("utf-8-sig")),
    "CR LF": lambda name, text: (name, text.replace("\n", "\r\n").encode()),
    "names of columns in capitals": lambda name, text: (name, "\n".join([*text.split("\n")[:1]]).upper().encode()
        + b"\n" + "\n".join(text.split("\n")[1:]).encode()),
    "quoted where needed": lambda name, text: (name, again(text, "\t", csv.QUOTE_MINIMAL)),
    "quoted, with commas": lambda name, text: (name, again(text, ",", csv.QUOTE_ALL)),
    "NA where empty": lambda name, text: (name, text.replace("\t\n", "\tNA\n").encode()),
}  # fmt: skip


def again(text, separator, quoting):
    out = io.StringIO()
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    csv.writer(out, delimiter=separator, quoting=quoting, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


@pytest.mark.parametrize("how", SAVED_AGAIN)
def test_files_that_somebody_saved_again(athena, tmp_path, how):
    folder = athena(tmp_path, CONCEPTS | {11: ("SNOMED", "11", '"Quoted" first')}, [*IS_A, (11, 1)], MAPS_TO)
    roots = ["SNOMED/59621000"]
    codes, names = athena_codes(folder, roots), described(pl.Series(["ICD10CM/I10", "SNOMED/11"]), folder, {})
    for file in list(folder.iterdir()):
        name, content = SAVED_AGAIN[how](file.name, file.read_text())
        file.unlink()
        (folder / name).write_bytes(content)
    assert athena_codes(folder, roots).equals(codes)
    assert described(pl.Series(["ICD10CM/I10", "SNOMED/11"]), folder, {}).equals(names)
    assert codes.filter(code="SNOMED/11")["description"].to_list() == ['"Quoted" first']


def test_all_files_of_a_download_are_accounted_for(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A, MAPS_TO)
    for name in ("VOCABULARY.csv", "drug_strength.csv.gz", "cpt4.jar", "readme.txt", "extra.csv", "old/CONCEPT.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    inventory = athena_inventory(folder)
    assert sorted(file.name for file in inventory.read) == sorted(COLUMNS)
    assert len(inventory.ignored) == 4
    assert [file.relative_to(folder).as_posix() for file in inventory.unknown] == ["extra.csv", "old/CONCEPT.csv"]
    (folder / "concept.csv.gz").write_text("")
    with pytest.raises(InputError, match=r"holds CONCEPT\.csv twice: CONCEPT\.csv and concept\.csv\.gz"):
        athena_files(folder)


def test_an_id_that_is_no_number(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A)
    (folder / "CONCEPT_ANCESTOR.csv").write_text("ancestor_concept_id\tdescendant_concept_id\none\ttwo\n")
    with pytest.raises(InputError, match=r"CONCEPT_ANCESTOR\.csv cannot be read") as caught:
        athena_codes(folder, ["SNOMED/59621000"])
    assert "\n" not in str(caught.value)


def test_a_download_of_other_vocabularies(athena, tmp_path):
    folder = athena(tmp_path, CONCEPTS, IS_A)
    with pytest.raises(
        InputError, match=r"none of the tasks' concepts is there\. Download the vocabularies LOINC, RxNorm"
    ):
        athena_codes(folder, ["LOINC/1", "RxNorm/2"])
