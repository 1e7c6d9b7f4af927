"""No stale result: every artefact of a study is checked against it, all the way from the events, by every stage."""

import json
import os
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
import yaml

from ehrctx.artifacts import MANIFEST, Files, Fingerprints, fingerprint, new_artifact
from ehrctx.cli.verbs import COUNTED
from ehrctx.configuration import validate
from ehrctx.errors import InputError
from ehrctx.provenance import OLDEST, chain, needed_for, outdated, prepare, require_current
from ehrctx.study import Study

MODEL = "gpt-tiny-16"
FOLDER = Path("results/pocket")
STUDY = {
    "name": "pocket",
    "simulate": {"preset": "planted", "subjects": 120, "seed": 1},
    "tokenizer": "clmbr_4k",
    "models": [MODEL],
    "tasks": ["guo_los", "lab_hyponatremia"],
    "labels": {"max_times_per_subject": 1},
    "pretraining": {"tokens": 1_000, "tokens_per_step": 500, "batch_tokens": 500, "validations": 1, "threads": 1},
    "probe": {"baselines": ["logistic_regression"], "regularization": [0.01, 1.0]},
    "statistics": {"replicates": 20},
    "privacy": {"minimum_count": 1},
}
ARTEFACTS = [
    "events/meds", "events/summary.json", "events/subject_splits.parquet", "timelines/clmbr_4k", "labels",
    f"models/{MODEL}", f"embeddings/{MODEL}", f"probes/{MODEL}", "probes/counts", "probes/groups",
    "robustness/properties", f"robustness/perplexity/{MODEL}", "report/provenance.json", "report/robustness.json",
    "report/page.json",
]  # fmt: skip


def study_of(**changes):
    return validate(Study, STUDY | changes, "test")


def commands(study_file):
    """The verbs in the workflow's order, each with what the workflow gives it."""
    f, events, timelines = FOLDER, FOLDER / "events/meds", FOLDER / "timelines/clmbr_4k"
    splits, labels, model = f / "events/subject_splits.parquet", f / "labels", f / "models" / MODEL
    profile, text = "pipelines/datasets/simulated.yaml", lambda key: yaml.safe_dump(STUDY[key])
    probes = ["--predictions", f / "probes" / MODEL, "--predictions", f / "probes/counts"]
    statistics = ["--privacy", text("privacy")]
    tasks = [word for task in STUDY["tasks"] for word in ("--task", task)]
    of_study = ["--study", study_file]
    return {
        "simulate": ["--subjects", 120, "--seed", 1, "--preset", "planted", "--out", events],
        "check": [events, "--profile", profile, "--out", f / "events/summary.json", *of_study],
        "split": [events, "--out", splits, *of_study],
        "tokenize": [events, "--splits", splits, "--profile", profile, "--tokenizer", "clmbr_4k", "--out", timelines,
                     *of_study],
        "label": [events, *tasks, "--profile", profile, "--settings", text("labels"), "--out", labels, *of_study],
        "pretrain": ["--timelines", timelines, "--model", MODEL, "--settings", text("pretraining"), "--out", model,
                     *of_study],
        "embed": ["--model", model, "--timelines", timelines, "--labels", labels, "--out", f / "embeddings" / MODEL,
                  *of_study],
        "probe": ["--embeddings", f / "embeddings" / MODEL, "--labels", labels, "--settings", text("probe"), "--out",
                  f / "probes" / MODEL, *of_study],
        "probe counts": ["--timelines", timelines, "--labels", labels, "--settings", text("probe"), "--out",
                         f / "probes/counts", *of_study],
        "groups": [events, "--labels", labels, "--profile", profile, "--out", f / "probes/groups", *of_study],
        "properties": ["--timelines", timelines, "--labels", labels, "--out", f / "robustness/properties", *of_study],
        "perplexity": ["--model", model, "--timelines", timelines, "--out", f / "robustness/perplexity" / MODEL,
                       *of_study],
        "score": [*probes, "--model", model, "--labels", labels, "--groups", f / "probes/groups", "--splits", splits,
                  "--settings", text("statistics"), *statistics, "--out", f / "report", *of_study],
        "robustness": [*probes, "--properties", f / "robustness/properties", "--losses",
                       f / "robustness/perplexity" / MODEL, "--statistics", text("statistics"), *statistics, "--out",
                       f / "report", *of_study],
        "report": ["--tables", f / "report", "--timelines", timelines, "--summary", f / "events/summary.json",
                   *of_study, "--out", f / "report/index.html"],
    }  # fmt: skip


def call(words):
    from ehrctx.cli.verbs import app

    app([str(word) for word in words], standalone_mode=False)


def link_repository(folder, repository):
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("pipelines", "tokenizers"):
        (folder / part).symlink_to(repository / part)


@pytest.fixture(scope="module")
def pocket(repository, tmp_path_factory):
    """The folder in which a pocket-size study was run, verb by verb."""
    folder = tmp_path_factory.mktemp("pocket")
    link_repository(folder, repository)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for verb, words in commands("study.yaml").items():
            call([verb.split()[0], *words])
    return folder


@pytest.fixture
def copy(pocket, tmp_path, monkeypatch):
    """A copy of that study, to be damaged; the test runs in it."""
    shutil.copytree(pocket, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def everything():
    return [FOLDER / name for name in ARTEFACTS]


def test_a_finished_study_fits_itself(copy):
    study = study_of()
    assert set(chain(study)) == set(everything())
    assert outdated(study) == {}
    require_current(study, everything())


PRETRAINING = STUDY["pretraining"]
EDITS = [
    ({"simulate": STUDY["simulate"] | {"seed": 2}}, "events/meds", "`simulate.seed`: 1, now 2"),
    ({"splits": {"hash": [0.5, 0.2, 0.3]}}, "events/subject_splits.parquet", "`splits`"),
    ({"labels": {"max_times_per_subject": 2}}, "labels", "`labels.max_times_per_subject`: 1, now 2"),
    ({"tasks": ["guo_los"]}, "labels", "`tasks` differs"),
    ({"pretraining": PRETRAINING | {"tokens": 2_000}}, f"models/{MODEL}", "`pretraining.tokens`: 1000, now 2000"),
    ({"pretraining": PRETRAINING | {"precision": "bf16-mixed"}}, f"models/{MODEL}", "`pretraining.precision`"),
    ({"embedding": {"pooling": "mean"}}, f"embeddings/{MODEL}", '`embedding.pooling`: "last", now "mean"'),
    ({"probe": STUDY["probe"] | {"max_iterations": 7}}, f"probes/{MODEL}", "`probe.max_iterations`: 1000, now 7"),
    ({"probe": STUDY["probe"] | {"max_iterations": 7}}, "probes/counts", "`probe.max_iterations`: 1000, now 7"),
    ({"perplexity": {"stride": 4}}, f"robustness/perplexity/{MODEL}", "`perplexity.stride`: nothing, now 4"),
    ({"perplexity": {"minimum_tokens": 5}}, "report/robustness.json", "`perplexity.minimum_tokens`: 30, now 5"),
    ({"statistics": {"replicates": 30}}, "report/provenance.json", "`statistics.replicates`: 20, now 30"),
    ({"statistics": {"replicates": 30}}, "report/robustness.json", "`statistics.replicates`: 20, now 30"),
    ({"privacy": {"minimum_count": 5}}, "report/provenance.json", "`privacy.minimum_count`: 1, now 5"),
    ({"privacy": {"minimum_count": 5}}, "report/robustness.json", "`privacy.minimum_count`: 1, now 5"),
    ({"published": "context_clues"}, "report/page.json", '`study.published`: nothing, now "context_clues"'),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "artefact", "key"), EDITS)
def test_a_changed_key_is_named_with_the_artefact_that_it_made(copy, changes, artefact, key):
    study = study_of(**changes)
    assert key in outdated(study)[FOLDER / artefact]
    with pytest.raises(InputError) as refused:
        require_current(study, [FOLDER / artefact])
    assert f"{FOLDER / artefact} does not fit the study 'pocket' (" in str(refused.value)
    assert key in str(refused.value)


def test_a_changed_profile_or_spec_is_noticed(copy):
    for part in ("pipelines", "tokenizers"):
        source = (copy / part).resolve()
        (copy / part).unlink()
        shutil.copytree(source, copy / part)
    spec, profile = copy / "tokenizers/clmbr_4k.yaml", copy / "pipelines/datasets/simulated.yaml"
    spec.write_text(spec.read_text().replace("bins: 10", "bins: 5"))
    assert set(outdated(study_of())) == {FOLDER / "timelines/clmbr_4k"}
    assert outdated(study_of())[FOLDER / "timelines/clmbr_4k"] == "`tokenizer.bins`: 10, now 5"
    profile.write_text(profile.read_text().replace("2024-12-31", "2023-12-31"))
    said = outdated(study_of())
    for artefact in ("events/summary.json", "timelines/clmbr_4k", "labels", "probes/groups"):
        assert '`profile.follow_up_end`: "2024-12-31", now "2023-12-31"' in said[FOLDER / artefact]


# What each stage is made from: a change of the one must be noticed by the other.
MADE_FROM = [
    ("events/meds", "events/summary.json"), ("events/meds", "events/subject_splits.parquet"),
    ("events/meds", "timelines/clmbr_4k"), ("events/meds", "labels"), ("events/meds", "probes/groups"),
    ("events/subject_splits.parquet", "timelines/clmbr_4k"), ("timelines/clmbr_4k", f"models/{MODEL}"),
    ("timelines/clmbr_4k", f"embeddings/{MODEL}"), ("labels", f"embeddings/{MODEL}"),
    (f"models/{MODEL}", f"embeddings/{MODEL}"), (f"embeddings/{MODEL}", f"probes/{MODEL}"),
    ("labels", f"probes/{MODEL}"), ("labels", "probes/counts"), ("timelines/clmbr_4k", "probes/counts"),
    ("labels", "probes/groups"), ("labels", "robustness/properties"), ("timelines/clmbr_4k", "robustness/properties"),
    (f"models/{MODEL}", f"robustness/perplexity/{MODEL}"), ("timelines/clmbr_4k", f"robustness/perplexity/{MODEL}"),
    (f"models/{MODEL}", "report/provenance.json"), ("probes/counts", "report/provenance.json"),
    (f"probes/{MODEL}", "report/robustness.json"), ("robustness/properties", "report/robustness.json"),
    ("report/provenance.json", "report/page.json"), ("report/robustness.json", "report/page.json"),
    ("events/summary.json", "report/page.json"),
]  # fmt: skip


def touch_content(path):
    """Changes an artefact without changing what it says of how it was made."""
    if path.suffix == ".parquet":
        table, metadata = pl.read_parquet(path), pq.read_metadata(path).metadata
        table.reverse().write_parquet(path, metadata={"ehrctx": metadata[b"ehrctx"].decode()})
        return
    file = path / MANIFEST if path.is_dir() else path
    held = json.loads(file.read_text())
    file.write_text(json.dumps(held | {"versions": "another"}))


@pytest.mark.parametrize(("changed", "artefact"), MADE_FROM)
def test_what_was_made_from_something_else_is_named_with_the_input(copy, changed, artefact):
    (name,) = (
        name for name, source in chain(study_of())[FOLDER / artefact].inputs.items() if source == FOLDER / changed
    )
    touch_content(FOLDER / changed)
    assert f"made from another {name}" in outdated(study_of())[FOLDER / artefact].split("; ")
    with pytest.raises(InputError, match=r"does not fit the study 'pocket' \(.*made from another "):
        require_current(study_of(), [FOLDER / artefact])


def test_every_input_of_every_artefact_is_tried_above():
    pairs = {(source, path) for path, one in expected_pairs() for source in one}
    tried = {(FOLDER / changed, FOLDER / artefact) for changed, artefact in MADE_FROM}
    of_tables = {pair for pair in pairs if pair[1].parent.name == "report"}
    assert pairs - of_tables == tried - of_tables


def expected_pairs():
    for path, one in chain(study_of()).items():
        yield path, [source for source in one.inputs.values() if isinstance(source, Path) and FOLDER in source.parents]


@pytest.mark.parametrize(
    ("verb", "spoiled"),
    [
        ("pretrain", "timelines/clmbr_4k"), ("embed", f"models/{MODEL}"), ("probe", f"models/{MODEL}"),
        ("probe counts", "labels"), ("groups", "labels"), ("properties", "labels"), ("perplexity", f"models/{MODEL}"),
        ("score", f"models/{MODEL}"), ("robustness", f"models/{MODEL}"), ("report", f"models/{MODEL}"),
    ],
)  # fmt: skip
def test_every_stage_checks_the_whole_chain(copy, verb, spoiled):
    """A change far up is refused by the stages far down, whose own inputs are as they were; nothing is written."""
    manifest = FOLDER / spoiled / MANIFEST
    held = json.loads(manifest.read_text())
    if spoiled == "labels":
        held["settings"]["labels"]["max_times_per_subject"] = 3
    elif spoiled.startswith("models"):
        held["settings"]["settings"]["tokens"] = 3
    else:
        held["settings"]["tokenizer"]["bins"] = 3
    manifest.write_text(json.dumps(held))
    before = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}
    with pytest.raises(
        InputError, match=rf"{spoiled} does not fit the study 'pocket' \(`[a-z_.]+(tokens|bins|subject)`: 3"
    ):
        call([verb.split()[0], *commands("study.yaml")[verb]])
    after = {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {FOLDER}


@pytest.mark.parametrize(
    ("artefact", "file"),
    [
        ("events/meds", "data/00000.parquet"), ("timelines/clmbr_4k", "tokens.npy"), ("labels", "guo_los.parquet"),
        (f"models/{MODEL}", "model.safetensors"), (f"embeddings/{MODEL}", "index.parquet"),
        (f"probes/{MODEL}", "predictions.parquet"), ("probes/groups", "groups.parquet"),
        ("robustness/properties", "properties.parquet"), (f"robustness/perplexity/{MODEL}", "losses.parquet"),
    ],
)  # fmt: skip
def test_a_file_of_an_artefact_that_is_gone_or_another_is_named(copy, artefact, file):
    path = FOLDER / artefact / file
    content = path.read_bytes()
    path.write_bytes(content[:-7] + b"changed")
    assert outdated(study_of()) == {FOLDER / artefact: f"{file} is not the one that was written with it"}
    path.unlink()
    assert outdated(study_of()) == {FOLDER / artefact: f"{file} is missing"}
    with pytest.raises(InputError, match=rf"{artefact} does not fit the study 'pocket' \({file} is missing\)"):
        require_current(study_of(), everything())
    path.write_bytes(content)
    assert outdated(study_of()) == {}


def test_a_finished_model_needs_the_folder_that_it_started_from_no_more(copy):
    """Its bytes are compared while they are there."""
    study, manifest = study_of(start_from={MODEL: "./begun"}), FOLDER / "models" / MODEL / MANIFEST
    shutil.copytree(FOLDER / "models" / MODEL, "begun")
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(held | {"inputs": held["inputs"] | {"start": fingerprint(Path("begun"))}}))
    assert FOLDER / "models" / MODEL not in outdated(study)
    assert outdated(study_of())[FOLDER / "models" / MODEL] == "made with start, which the study does not have"
    touch_content(Path("begun"))
    assert outdated(study)[FOLDER / "models" / MODEL] == "made from another start"
    shutil.rmtree("begun")
    assert FOLDER / "models" / MODEL not in outdated(study)


def test_a_table_that_was_changed_by_hand_is_no_longer_reported(copy):
    table = FOLDER / "report/scores.csv"
    table.write_text(table.read_text().replace("auroc", "AUROC"))
    with pytest.raises(InputError, match=r"provenance\.json does not fit .*scores\.csv is not the one"):
        call(["report", *commands("study.yaml")["report"]])


def test_fewer_predictions_than_the_study_has_are_no_whole_report(copy):
    words = commands("study.yaml")
    call(["score", *words["score"][2:]])
    with pytest.raises(InputError, match=rf"provenance\.json does not fit .*made without probes/{MODEL}"):
        call(["report", *words["report"]])


@pytest.mark.parametrize("artefact", ["labels", "events/subject_splits.parquet", "report/provenance.json"])
def test_an_artefact_that_does_not_say_what_made_it_is_outdated(copy, artefact):
    path = FOLDER / artefact
    if path.suffix == ".parquet":
        pl.read_parquet(path).write_parquet(path)
    else:
        (path / MANIFEST if path.is_dir() else path).write_text("{}")
    assert outdated(study_of())[path] == "it does not say what it was made from"
    with pytest.raises(InputError, match=r"does not say what it was made from\. Delete it"):
        require_current(study_of(), [path])


def test_a_missing_artefact_is_named(copy):
    shutil.rmtree(FOLDER / "models")
    with pytest.raises(InputError, match=rf"models/{MODEL} is not there"):
        require_current(study_of(), [FOLDER / "probes" / MODEL])
    with pytest.raises(InputError, match="is no artefact of the study 'pocket', whose results lie in results/pocket"):
        require_current(study_of(), [Path("elsewhere")])


def test_what_is_needed_comes_first():
    needed = needed_for(study_of(), [FOLDER / "probes" / MODEL])
    assert [str(path.relative_to(FOLDER)) for path in needed] == [
        "events/meds", "events/subject_splits.parquet", "timelines/clmbr_4k", f"models/{MODEL}", "labels",
        f"embeddings/{MODEL}", f"probes/{MODEL}",
    ]  # fmt: skip


def test_marks_make_outdated_artefacts_look_old_and_are_taken_off_again(copy):
    def times():
        return {path: path.stat().st_mtime_ns for path in everything()}

    before, changed = times(), study_of(statistics={"replicates": 30})
    for _ in range(2):
        prepare(changed, outdated(changed))
        old = {path for path in everything() if path.stat().st_mtime < OLDEST}
        assert old == {FOLDER / "report" / name for name in ("provenance.json", "robustness.json", "page.json")}
    prepare(study_of(), outdated(study_of()))
    assert times() == before


def test_a_running_study_is_not_marked(copy):
    from ehrctx.artifacts import try_lock

    changed = study_of(statistics={"replicates": 30})
    with try_lock(FOLDER / ".lock"):
        prepare(changed, outdated(changed))
    assert all(path.stat().st_mtime > OLDEST for path in everything())


def test_every_verb_masks_by_the_threshold_of_the_study(copy, capsys):
    """10 to 19 subjects are not printed at a site that requires 20; here all are too few."""
    (copy / "strict.yaml").write_text(yaml.safe_dump(STUDY | {"privacy": {"minimum_count": 100_000}}))
    printing = ("check", "split", "tokenize", "label", "pretrain", "embed", "probe", "probe counts", "groups",
                "properties", "perplexity")  # fmt: skip
    for verb in printing:
        call([verb.split()[0], *commands("strict.yaml")[verb]])
        said = capsys.readouterr().out
        counts = list(counts_in(json.loads(said[: said.rindex("\n}") + 2])))
        assert counts, verb
        assert set(counts) <= {"<100000", 0}, verb


def counts_in(facts, counted=False):
    """The counts of people among what a verb prints."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from counts_in(value, counted or name in COUNTED)
        elif (counted or name in COUNTED) and isinstance(value, int | str):
            yield value


# Data that somebody else keeps: what its files hold decides, not when they say they were written.


@pytest.fixture
def elsewhere(tmp_path, write_meds, repository, monkeypatch):
    """A data set, a study of it, and labels that record the data set as their input."""
    monkeypatch.chdir(tmp_path)
    link_repository(tmp_path, repository)
    rows = pl.DataFrame({"subject_id": [1, 1], "time": [None, None], "code": ["MEDS_BIRTH", "a"]})
    data = write_meds(tmp_path / "my meds", {"0": rows, "deep/1": rows.with_columns(subject_id=2)})
    made = {key: value for key, value in STUDY.items() if key != "simulate"}
    study = validate(Study, made | {"data": str(data), "profile": "simulated"}, "test")
    one = chain(study)[FOLDER / "labels"]
    with new_artifact(FOLDER / "labels", "labels", one.settings, one.inputs):
        pass
    assert outdated(study) == {}
    return data, study


def test_other_content_with_an_earlier_time_is_noticed(elsewhere):
    data, study = elsewhere
    shard = data / "data/deep/1.parquet"
    before = shard.stat()
    pl.read_parquet(shard).with_columns(code=pl.lit("b")).write_parquet(shard)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns - 10**12))
    assert outdated(study) == {FOLDER / "labels": "made from another events"}


def test_the_same_content_with_another_time_is_not(elsewhere):
    data, study = elsewhere
    os.utime(data / "data/0.parquet", (10**9, 10**9))
    (data / "README.md").write_text("a file that nobody reads")
    (data / "data/._0.parquet").write_text("junk")
    assert outdated(study) == {}


def test_a_changed_file_of_a_data_set_that_an_import_wrote_is_refused(elsewhere):
    """Its manifest stands for its files, and so has to be right about them."""
    data, study = elsewhere
    files = {name: fingerprint(data / name) for name in ("data/0.parquet", "data/deep/1.parquet")}
    (data / MANIFEST).write_text(json.dumps({"kind": "events", "settings": {}, "inputs": {}, "files": files}))
    assert outdated(study) == {FOLDER / "labels": "made from another events"}
    pl.read_parquet(data / "data/0.parquet").with_columns(code=pl.lit("b")).write_parquet(data / "data/0.parquet")
    os.utime(data / "data/0.parquet", (10**9, 10**9))
    for look in (lambda: outdated(study), lambda: require_current(study, [FOLDER / "labels"])):
        with pytest.raises(InputError, match=r"my meds: data/0\.parquet is not the one that was written with it"):
            look()


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_another_set_of_files_is_noticed(elsewhere, change):
    data, study = elsewhere
    if change == "added":
        shutil.copy(data / "data/0.parquet", data / "data/2.parquet")
    elif change == "removed":
        (data / "data/0.parquet").unlink()
    else:
        (data / "data/0.parquet").rename(data / "data/3.parquet")
    assert outdated(study) == {FOLDER / "labels": "made from another events"}


def test_fingerprints_are_remembered_and_right(tmp_path, monkeypatch):
    file, memory = tmp_path / "0.parquet", tmp_path / "memory.json"
    file.write_text("events")
    monkeypatch.setattr("ehrctx.artifacts.SETTLED", -1)
    first, source = Fingerprints(memory), Files(tmp_path, (file,))
    assert first.of(source) == (whole := fingerprint(source))
    first.save()
    read = []
    monkeypatch.setattr("ehrctx.artifacts._digest", lambda path: read.append(path) or "other")
    again = Fingerprints(memory)
    assert again.of(source) == whole
    assert read == [], "what did not change is not read again"
    file.write_text("eventS")
    assert again.of(source) != whole
    assert read == [file]


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_memory_is_forgotten(tmp_path, damage):
    (tmp_path / "memory.json").write_text(damage)
    (tmp_path / "a").write_text("x")
    assert Fingerprints(tmp_path / "memory.json").of(tmp_path / "a") == fingerprint(tmp_path / "a")
