"""From concepts (LOINC, ICD-10-CM, …) to the codes that one data set uses: through its own `parent_codes`, and through
an OMOP vocabulary as Athena (https://athena.ohdsi.org) hands it out."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.csv_files import open_bytes, read_header, readable, refuse_broken_lines, refuse_cut_off
from ehrctx.events.omop.concepts import describe
from ehrctx.events.omop.read import ABOUT, Table
from ehrctx.events.omop.tables import OTHER_TABLES
from ehrctx.events.units import is_missing_unit
from ehrctx.inventory import Inventory, files_below

# Diagnosis systems whose hierarchy is the prefix of the code without its dot, as data sets rarely ship it.
PREFIX_SYSTEMS = ("ICD10CM", "ICD9CM")


def _belongs(concept: pl.Expr, concepts: Mapping[str, tuple[str, ...]]) -> pl.Expr:
    found = pl.lit(False)
    for system, members in concepts.items():
        if system in PREFIX_SYSTEMS:
            bare = concept.str.replace_all(".", "", literal=True)
            for member in members:
                found = found | bare.str.starts_with(f"{system}/{member.replace('.', '')}")
        else:
            found = found | concept.is_in([f"{system}/{member}" for member in members])
    return found


def codes_of(concepts: Mapping[str, tuple[str, ...]], used: pl.Series, codes: pl.DataFrame) -> set[str]:
    """The codes that belong to `concepts`: by their own name `SYSTEM/CODE` or through their ancestors.

    `concepts` maps a system to its codes; ICD codes stand for all codes they begin. `used` are the codes of the data
    set, `codes` its metadata (code, description, parent_codes).
    """
    edges = codes.select("code", parent="parent_codes").explode("parent").drop_nulls()
    everything = pl.concat([used.cast(pl.String), edges["code"], edges["parent"]]).unique()
    members = set(everything.to_frame("code").filter(_belongs(pl.col("code"), concepts))["code"])
    while True:  # climb one level a turn, until nothing new belongs
        found = set(edges.filter(pl.col("parent").is_in(list(members)))["code"]) - members
        if not found:
            return members & set(used)
        members |= found


def prefixes_of(codes: pl.Series) -> pl.DataFrame:
    """(code, parent): the diagnoses of PREFIX_SYSTEMS among distinct `codes`, and those that lie above them.

    The parent is the code without its last character, down to the category of three.
    """
    found, last = [pl.DataFrame(schema={"code": pl.String, "parent": pl.String})], codes.alias("code").to_frame()
    prefixed = pl.any_horizontal(pl.col("code").str.starts_with(f"{system}/") for system in PREFIX_SYSTEMS)
    while last.height:
        bare = pl.col("code").str.split("/").list.last().str.replace_all(".", "", literal=True).str.len_chars()
        shorter = pl.col("code").str.head(-1).str.strip_chars_end(".")
        edges = last.filter(prefixed & (bare > 3)).select("code", parent=shorter)
        found.append(edges)
        last = edges.select(code="parent").unique()
    return pl.concat(found).unique()


def parents_of(codes: pl.DataFrame) -> pl.DataFrame:
    """(code, parent): the hierarchy that a data set names, one level an edge, and the prefixes of what it names.

    `codes` is its metadata (code, description, parent_codes).
    """
    named = codes.select("code", parent="parent_codes").explode("parent").drop_nulls().unique()
    prefixes = prefixes_of(pl.concat([named["code"], named["parent"]]).unique())
    return pl.concat([named, prefixes]).unique().sort("code", "parent")


CONCEPT, ANCESTOR, RELATIONSHIP = "CONCEPT.csv", "CONCEPT_ANCESTOR.csv", "CONCEPT_RELATIONSHIP.csv"
COLUMNS = {
    CONCEPT: ("concept_id", "concept_name", "vocabulary_id", "concept_code"),
    ANCESTOR: ("ancestor_concept_id", "descendant_concept_id"),
    RELATIONSHIP: ("concept_id_1", "concept_id_2", "relationship_id", "invalid_reason"),
}


UNREAD_VOCABULARY = "Name the files as Athena does, CONCEPT.csv, also in small letters or with .gz."


def _athena_name(file: Path) -> str:
    """What Athena calls a file that may be compressed, or named in small letters: `CONCEPT.csv`."""
    stem, _, suffix = file.name.lower().removesuffix(".gz").partition(".")
    return f"{stem.upper()}.{suffix}"


def athena_inventory(folder: Path) -> Inventory:
    """What the files of an Athena download are. Hidden folders and those below are looked through, too."""
    others = {f"{name.upper()}.csv" for name in OTHER_TABLES}

    def rule(relative: Path) -> str | None:
        name = _athena_name(relative)
        if len(relative.parts) == 1 and name in COLUMNS:
            return ""
        if name in others:
            return "a table that is not needed"
        return "about the download" if ABOUT.fullmatch(relative.name.lower()) else None

    return Inventory.of(folder, files_below(folder) if folder.is_dir() else [], rule)


def _vocabulary_files(folder: Path) -> dict[str, Path]:
    """The files that are read of an Athena download, by the name that Athena gives them."""
    files: dict[str, Path] = {}
    for file in athena_inventory(folder).read:
        name = _athena_name(file)
        if name in files:
            raise InputError(f"{folder} holds {name} twice: {files[name].name} and {file.name}. Remove one.")
        files[name] = file
    return {name: files[name] for name in COLUMNS if name in files}


def athena_files(folder: Path) -> dict[str, Path]:
    """The files of an Athena download that are read, by name.

    Raises InputError where CONCEPT.csv, or both files that say what lies below a concept, are not there.
    """
    folder = Path(folder)
    files = _vocabulary_files(folder)
    remedy = "Give the unpacked folder of an Athena download (https://athena.ohdsi.org)."
    if CONCEPT not in files:
        raise InputError(f"the ontology {folder} has no {CONCEPT}. {remedy}")
    if len(files) == 1:
        raise InputError(f"the ontology {folder} has neither {ANCESTOR} nor {RELATIONSHIP}. {remedy}")
    return files


def description_files(folder: Path) -> list[Path]:
    """The files of an Athena download from which codes are described; CONCEPT.csv in any case."""
    return list(_vocabulary_files(Path(folder)).values()) or [Path(folder) / CONCEPT]


def _scan(file: Path) -> pl.LazyFrame:
    """The columns that are read of a file, lazily; Athena separates by tabs and quotes nothing."""
    columns = COLUMNS[_athena_name(file)]
    header = read_header(file)
    lower = [name.strip().lower() for name in header.names]
    missing = [name for name in columns if name not in lower]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Give the file as Athena ships it.")
    refuse_cut_off(file, header)
    names = {name: header.names[lower.index(name)] for name in columns}
    rows = pl.scan_csv(
        file,
        separator=header.separator,
        quote_char='"' if header.quoted else None,
        infer_schema=False,
        schema_overrides={names[name]: pl.Int64 for name in columns if "concept_id" in name},
        glob=False,
    )
    return rows.select(pl.col(names[name]).alias(name) for name in columns)


def _read(rows: pl.LazyFrame, file: Path) -> pl.DataFrame:
    try:
        return rows.collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        with readable(file, "CSV"), open_bytes(file) as stream:
            refuse_broken_lines(file, stream)
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read ({reason}). Unpack the Athena download again.") from None


def _of(rows: pl.LazyFrame, column: str, ids: pl.Series) -> pl.LazyFrame:
    """The rows whose `column` is one of `ids`."""
    return rows.join(ids.unique().alias(column).to_frame().lazy(), on=column, how="semi")


def _related(file: Path, *relationships: str) -> pl.LazyFrame:
    """(concept_id_1, concept_id_2, relationship_id) of pairs that are still valid."""
    valid = is_missing_unit(pl.col("invalid_reason"))  # R writes NA for what is empty
    rows = _scan(file).filter(pl.col("relationship_id").is_in(relationships) & valid)
    return rows.filter(pl.col("concept_id_1") != pl.col("concept_id_2")).drop("invalid_reason")


def _below(files: Mapping[str, Path], roots: pl.Series) -> pl.DataFrame:
    """(root, concept_id): all concepts below each root, and the root itself."""
    below = pl.DataFrame({"root": roots, "concept_id": roots})
    if ANCESTOR in files:
        rows = _scan(files[ANCESTOR]).rename({"ancestor_concept_id": "root", "descendant_concept_id": "concept_id"})
        found = _read(_of(rows, "root", roots), files[ANCESTOR])
        # every standard concept is its own descendant: a table without these is empty, as in a partial download
        if found.height or RELATIONSHIP not in files:
            return pl.concat([below, found]).unique()
    rows = _related(files[RELATIONSHIP], "Is a", "Subsumes")
    is_a = pl.col("relationship_id") == "Is a"
    one, two = pl.col("concept_id_1"), pl.col("concept_id_2")
    pairs = rows.select(child=pl.when(is_a).then(one).otherwise(two), concept_id=pl.when(is_a).then(two).otherwise(one))
    edges = _read(pairs.unique(), files[RELATIONSHIP])
    last = below
    while last.height:  # one level a turn, until nothing new is below
        last = last.join(edges, on="concept_id").select("root", concept_id="child").unique()
        last = last.join(below, on=["root", "concept_id"], how="anti")
        below = pl.concat([below, last])
    return below


def athena_codes(folder: Path, concepts: Collection[str]) -> pl.DataFrame:
    """(code, description, parent_codes) of every code below `concepts` (`SNOMED/59621000`), with these as its parents.

    Below a concept are its descendants, by CONCEPT_ANCESTOR.csv or, where that is missing or empty, the `Is a` and
    `Subsumes` of CONCEPT_RELATIONSHIP.csv; and all codes of other systems that `Maps to` leads from to one of these
    (ICD-10-CM's I10 to essential hypertension), as in EHRSHOT. ICD codes are named with and without their dot. The
    files are scanned for these rows alone: what is held in memory are the descendants, or else all `Is a` pairs.

    Raises InputError by file where one is missing or has not the columns of Athena, or none of `concepts` is there.
    """
    files = athena_files(folder)
    concept = _scan(files[CONCEPT]).with_columns(code=pl.concat_str("vocabulary_id", "concept_code", separator="/"))
    named = pl.Series("code", sorted(concepts), dtype=pl.String)
    roots = _read(_of(concept, "code", named).select("concept_id", root_code="code"), files[CONCEPT])
    if roots.is_empty():
        systems = sorted({name.partition("/")[0] for name in concepts})
        raise InputError(
            f"{files[CONCEPT]}: none of the tasks' concepts is there. Download the vocabularies {', '.join(systems)}."
        )
    missing = sorted(set(concepts) - set(roots["root_code"]))
    if missing:
        said = f"warning: {files[CONCEPT]} has not {', '.join(missing)}: nothing below these is found."
        print(f"{said} Download their vocabularies.", file=sys.stderr, flush=True)
    below = _below(files, roots["concept_id"])
    if RELATIONSHIP in files:
        maps = _of(_related(files[RELATIONSHIP], "Maps to"), "concept_id_2", below["concept_id"])
        mapped = _read(maps.select(source="concept_id_1", concept_id="concept_id_2"), files[RELATIONSHIP])
        sources = below.join(mapped, on="concept_id").select("root", concept_id="source")
        below = pl.concat([below, sources]).unique()
    names = _read(_of(concept, "concept_id", below["concept_id"]), files[CONCEPT])
    found = below.join(roots, left_on="root", right_on="concept_id").join(names, on="concept_id")
    undotted = found.filter(pl.col("vocabulary_id").is_in(PREFIX_SYSTEMS)).with_columns(
        code=pl.concat_str(
            "vocabulary_id", pl.col("concept_code").str.replace_all(".", "", literal=True), separator="/"
        )
    )
    return (
        pl.concat([found, undotted])
        .group_by("code")
        .agg(description=pl.col("concept_name").min(), parent_codes=pl.col("root_code").unique().sort())
        .sort("code")
    )


def described(used: pl.Series, folder: Path | None, known: Mapping[str, str]) -> pl.DataFrame:
    """(code, description, parent_codes) of the `used` codes and all that lies above them, for metadata/codes.parquet.

    CONCEPT.csv of an Athena download in `folder` describes a code `SYSTEM/CODE`; its other two files, where they are
    there, give the parents, and what a code of another system `Maps to`. Without a folder no code has a
    description but those that are `known`. Raises InputError where CONCEPT.csv is missing or not as Athena ships it.
    """
    own = pl.DataFrame({"code": used.cast(pl.String)}).with_columns(
        known=pl.col("code").replace_strict(dict(known), default=None, return_dtype=pl.String)
    )
    if folder is None:
        return own.select("code", description="known", parent_codes=pl.lit(None, pl.List(pl.String))).sort("code")
    folder = Path(folder)
    files = _vocabulary_files(folder)
    if CONCEPT not in files:
        raise InputError(
            f"{folder} has no {CONCEPT}. Give the unpacked folder of an Athena download (https://athena.ohdsi.org)."
        )
    concept = _scan(files[CONCEPT]).with_columns(code=pl.concat_str("vocabulary_id", "concept_code", separator="/"))
    ids = _read(_of(concept, "code", own["code"]), files[CONCEPT])["concept_id"].unique()
    tables = {Path(name).stem.lower(): file for name, file in files.items()}
    concepts = describe({name: Table(name, (file,)) for name, file in tables.items()}, ids.to_numpy())
    return (
        own.join(concepts, on="code", how="full", coalesce=True)
        .select("code", description=pl.coalesce("known", "description"), parent_codes="parent_codes")
        .sort("code")
    )
