"""The whole workflow on the smoke study: it ends with a report, does nothing twice, and survives being killed."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
import yaml
from faults.kill import processes

SNAKEMAKE = [str(Path(sys.executable).parent / "snakemake"), "--cores", "2"]
SMOKE = ["--configfile", "pipelines/studies/smoke.yaml"]
PARTS = ("Snakefile", "pipelines", "tokenizers", "notebooks", "profiles")
NEEDED = ("ehrctx", "papermill", "jupyter")
MODELS = ("gpt-tiny-64", "hyena-tiny-128")
HEADS = ("logistic_regression", "random_forest", "lightgbm")
TASKS = ("guo_los", "lab_hyponatremia", "new_acutemi", "new_celiac")
NOTEBOOKS = ("overview", "copy_forwarding", "irregular_intervals", "disease_progression")
TABLES = {
    "scores": "task,model,head,k,replicate,score,value,lower,upper,n,n_positive,n_subjects,n_positive_subjects",
    "differences": "task,model,head,k,replicate,reference,reference_head,score,value,lower,upper,p,p_holm,"
    "p_delong,sure,n,n_positive,n_subjects,n_positive_subjects",
    "few_shot": "task,model,head,k,score,value,lower,upper,deviation,n_draws,n,n_positive,n_subjects,"
    "n_positive_subjects",
    "labels": "task,split,n,n_positive,n_subjects,n_positive_subjects,note,left_out",
    "models": "model,arch,context,parameters,tokens,seconds,tokens_per_second,real_token_share,subjects,passes,device,"
    "earlier_tokens,validation_loss",
    "curves": "model,arch,context,tokens,loss",
    "strata": "task,model,head,property,stratum,score,value,lower,upper,n,n_positive,n_subjects,n_positive_subjects",
    "perplexity": "model,position_from,position_to,kind,median,lower,upper,n,n_subjects",
}

pytestmark = pytest.mark.timeout(600)


def clone(repository, folder):
    """A folder that runs the repository's workflow and keeps its results to itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        (folder / part).symlink_to(repository / part)
    return folder


def snakemake(folder, *words, study=SMOKE, **popen):
    return subprocess.run(
        [*SNAKEMAKE, *study, *words], cwd=folder, capture_output=True, text=True, check=False, **popen
    )


def planned(run):
    """How many jobs of each rule a dry run would execute."""
    table = run.stdout.partition("Job stats:")[2].partition("total")[0]
    return {rule: int(n) for rule, n in re.findall(r"^(\w+)\s+(\d+)$", table, flags=re.MULTILINE)}


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory):
    missing = [c for c in NEEDED if not (Path(sys.executable).parent / c).exists()]
    if missing:
        pytest.skip(
            f"the whole workflow needs the commands {', '.join(missing)}, which this environment lacks "
            f"(pip install --editable '.[notebooks]' brings them)"
        )
    folder = clone(repository, tmp_path_factory.mktemp("workflow"))
    run = snakemake(folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, run


@pytest.fixture(scope="module")
def report(finished):
    """The folder of the tables and pages, and the tables; scores are of heads fitted on all labels."""
    folder = finished[0] / "results/smoke/report"
    tables = {name: pl.read_csv(folder / f"{name}.csv", schema_overrides={"k": pl.String}) for name in TABLES}
    return folder, tables | {"scores": tables["scores"].filter(pl.col("k") == "all")}


@pytest.fixture(scope="module")
def scored(report):
    """The tasks that must have scores, those whose labels have no note, and the mean where they are several."""
    labels = report[1]["labels"]
    estimable = [t for t in TASKS if not any(labels.filter(pl.col("task") == t)["note"].drop_nulls())]
    return [*estimable, "macro"] if len(estimable) > 1 else estimable


def test_every_table_has_its_columns_and_rows(report, scored):
    _, tables = report
    for name, columns in TABLES.items():
        assert ",".join(tables[name].columns) == columns
    columns = [*[(m, "logistic_regression") for m in MODELS], *[("counts", head) for head in HEADS]]
    expected = {(t, *c, s) for t in scored for c in columns for s in ("auroc", "auprc", "brier")}
    scores = tables["scores"]
    assert len(scored) >= 2
    assert scores.height == len(expected)
    assert set(scores.select("task", "model", "head", "score").rows()) == expected
    assert (scores["lower"] <= scores["upper"]).all()
    assert tables["differences"].height == len(scored) * 3 * 5 * 4
    assert set(tables["labels"].select("task", "split").rows()) == {
        (t, s) for t in TASKS for s in ("train", "tuning", "held_out")
    }
    assert tables["models"]["model"].to_list() == list(MODELS)
    assert set(tables["curves"]["model"]) == set(MODELS)
    assert set(tables["perplexity"]["model"]) == set(MODELS)
    assert set(tables["perplexity"]["kind"]) == {"all", "first", "repeat"}


def test_few_shot_scores_are_means_over_draws(report, scored):
    folder, tables = report
    of_draws = pl.read_csv(folder / "scores.csv", schema_overrides={"k": pl.String}).filter(pl.col("k") != "all")
    few_shot = tables["few_shot"]
    expected = {
        (task, model, "logistic_regression", k, s)
        for task in scored
        for model in (*MODELS, "counts")
        for k in ("2", "4")
        for s in ("auroc", "auprc", "brier")
    }
    identity = ["task", "model", "head", "k", "score"]
    assert set(few_shot.select(identity).rows()) == expected
    assert few_shot.height == len(expected)
    assert set(few_shot["n_draws"]) == {2}
    assert of_draws.height == 2 * len(expected)
    means = few_shot.join(of_draws.group_by(identity).agg(mean=pl.col("value").mean()), on=identity)
    assert means.height == len(expected)
    assert (means["value"] - means["mean"]).abs().max() < 2e-6
    assert (few_shot["lower"] <= few_shot["upper"]).all()


def test_the_strata_are_those_of_the_scored_tasks(report, scored):
    _, tables = report
    strata = tables["strata"]
    assert set(strata["task"]) == set(scored)
    assert set(strata["stratum"]) == {"Q1", "Q2", "Q3", "Q4", "Q4-Q1"}
    assert not strata.select("task", "model", "head", "property", "stratum").is_duplicated().any()
    # four quarters hold all held-out labels of a task
    quarters = strata.filter(pl.col("stratum") != "Q4-Q1").group_by("task", "model", "head", "property")
    n = dict(tables["scores"].filter(pl.col("score") == "brier").select("task", "n").unique().rows())
    for task, total in quarters.agg(pl.col("n").sum()).select("task", "n").unique().rows():
        assert total == n[task]


def test_the_mean_over_tasks_is_their_mean(report, scored):
    scores = report[1]["scores"]
    means = scores.filter(pl.col("task") == "macro")
    assert means.height == 5 * 3
    for row in means.iter_rows(named=True):
        same = [pl.col(key) == row[key] for key in ("model", "head", "score")]
        of_tasks = scores.filter(pl.col("task") != "macro", *same)
        assert of_tasks.height == len(scored) - 1
        assert row["value"] == pytest.approx(of_tasks["value"].mean(), abs=2e-6)
        assert row["n"] == of_tasks["n"].sum()


def test_the_report_holds_every_number_that_the_tables_hold(report):
    folder, tables = report
    page = (folder / "index.html").read_text()
    for column in ("value", "lower", "upper"):
        for value in tables["scores"][column]:
            assert f"{value:.3f}" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)  # self-contained


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_the_notebook_was_executed(report, notebook):
    folder, _ = report
    cells = json.loads((folder / f"{notebook}.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]
    drawn = 0
    for i, cell in enumerate(code):
        if not "".join(cell["source"]).rstrip().endswith(");"):
            continue
        assert any("image/png" in output.get("data", {}) for output in cell["outputs"])
        (said,) = ["".join(o["data"]["text/markdown"]) for o in code[i + 1]["outputs"]]
        assert re.fullmatch(r".{15,}\.", said, flags=re.DOTALL)
        # no architecture of the smoke study has two context lengths, and no task enough positive subjects to judge
        silent = re.search(r"(context|calibration|benefit|subgroup)_sentence\(", "".join(code[i + 1]["source"]))
        assert (said.lower() == "nothing can be said.") is (silent is not None)
        drawn += 1
    assert drawn == {"overview": 7, "copy_forwarding": 3, "irregular_intervals": 4, "disease_progression": 2}[notebook]
    page = (folder / f"{notebook}.html").read_text()
    assert len(re.findall(r"<img[^>]+src=\"data:image/png;base64,", page)) == drawn
    assert "subject_id" not in page


def test_every_model_and_every_head_on_counts_has_one_run_in_mlflow(finished, report):
    folder, _ = finished
    with sqlite3.connect(folder / "results/mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs where lifecycle_stage = 'active'").fetchall()
        metrics = {
            (run, key): value for run, key, value in store.execute("select run_uuid, key, value from latest_metrics")
        }
    assert sorted(name for _, name, _ in runs) == sorted([*MODELS, *[f"counts ({head})" for head in HEADS]])
    assert {status for _, _, status in runs} == {"FINISHED"}
    of = {name: run for run, name, _ in runs}
    for row in report[1]["scores"].iter_rows(named=True):
        name = f"counts ({row['head']})" if row["model"] == "counts" else row["model"]
        assert metrics[of[name], f"{row['score']}/{row['task']}"] == pytest.approx(row["value"], abs=1e-6)
    for model in MODELS:
        assert {(of[model], key) for key in ("validation_loss", "tokens_per_second", "real_token_share")} <= set(
            metrics
        )


def test_a_finished_study_runs_nothing_again(finished):
    folder, _ = finished
    again = snakemake(folder)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


NEW_TABLES = {"report", "notebook", "all"}


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        ("statistics={replicates: 200}", {"score", "robustness"} | NEW_TABLES),
        ("embedding={pooling: mean, windows: grid}", {"embed", "probe", "score", "robustness"} | NEW_TABLES),
        ("probe={max_iterations: 500}", {"probe", "probe_counts", "score", "robustness"} | NEW_TABLES),
        ("perplexity={stride: 8}", {"perplexity", "robustness"} | NEW_TABLES),
        ("perplexity={minimum_tokens: 5}", {"robustness"} | NEW_TABLES),
        ("privacy={minimum_count: 5}", {"score", "robustness"} | NEW_TABLES),
        ("pretraining={checkpoint_seconds: 7, threads: 2, devices: 2, compile: true}", {"report", "all"}),
    ],
)
def test_a_changed_key_runs_only_what_depends_on_it(finished, key, rules):
    folder, _ = finished
    run = snakemake(folder, "--dry-run", "--config", key)
    assert run.returncode == 0, run.stderr
    assert set(planned(run)) == rules


def test_an_unknown_key_stops_before_any_job(repository, tmp_path):
    folder = clone(repository, tmp_path / "clone")
    run = snakemake(folder, "--config", "tokeniser=clmbr")
    assert run.returncode != 0
    assert "unknown key `tokeniser`; did you mean 'tokenizer'?" in run.stdout + run.stderr
    assert not (folder / "results").exists()


def test_a_key_given_twice_stops_before_any_job(repository, tmp_path):
    """Snakemake reads the file itself, and takes the last of two."""
    folder = clone(repository, tmp_path / "clone")
    text = (repository / "pipelines/studies/smoke.yaml").read_text()
    (folder / "own.yaml").write_text(f"{text}tasks: [guo_los]\n")
    run = snakemake(folder, "--dry-run", study=["--configfile", "own.yaml"])
    assert run.returncode != 0
    assert re.search(r"own\.yaml, line \d+: not valid YAML \(the key `tasks` is given twice", run.stdout + run.stderr)
    assert not (folder / "results").exists()


STAGES = {
    "check",
    "split",
    "tokenize",
    "label",
    "pretrain",
    "embed",
    "probe",
    "probe_counts",
    "groups",
    "properties",
}
STAGES |= {"perplexity", "robustness", "score", "report", "notebook", "tracking_store", "all"}


def dry_run(folder, study, *words):
    return snakemake(folder, "--dry-run", *words, study=["--configfile", f"pipelines/studies/{study}.yaml"])


def test_the_demo_can_be_run(repository, tmp_path):
    run = dry_run(clone(repository, tmp_path / "clone"), "demo")
    assert run.returncode == 0, run.stderr
    jobs = planned(run)
    assert set(jobs) == STAGES | {"simulate"}
    assert (jobs["pretrain"], jobs["perplexity"], jobs["notebook"]) == (8, 8, 4)


def test_the_mimic_demo_can_be_run(repository, tmp_path, mimic_demo):
    run = dry_run(clone(repository, tmp_path / "clone"), "mimic_iv_demo", "--config", f"data={mimic_demo}")
    assert run.returncode == 0, run.stderr
    assert set(planned(run)) == STAGES


@pytest.mark.parametrize(("study", "models"), [("ehrshot", 8), ("context_clues", 16)])
def test_a_study_finds_its_data_at_the_stated_place(
    repository, tmp_path, write_meds, write_given_labels, study, models
):
    folder = clone(repository, tmp_path / "clone")
    rows = pl.DataFrame({"subject_id": [1, 2], "time": [None, None], "code": ["MEDS_BIRTH"] * 2})
    data = write_meds(folder / "data" / study, {"0": rows}, {1: "train", 2: "held_out"}, pl.DataFrame({"code": ["x"]}))
    tasks = yaml.safe_load((repository / f"pipelines/studies/{study}.yaml").read_text())["tasks"]
    if study == "ehrshot":
        write_given_labels(data / "labels", tasks, [1, 2])
    run = dry_run(folder, study)
    assert run.returncode == 0, run.stderr
    jobs = planned(run)
    assert set(jobs) == STAGES
    assert (jobs["pretrain"], jobs["embed"], jobs["probe"]) == (models, models, models)


@pytest.mark.parametrize("study", ["ehrshot", "context_clues", "mimic_iv_demo"])
def test_a_study_without_its_data_stops_before_any_job(repository, tmp_path, study):
    folder = clone(repository, tmp_path / "clone")
    place = yaml.safe_load((repository / f"pipelines/studies/{study}.yaml").read_text())["data"]
    run = dry_run(folder, study)
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert place in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if place in line]) == 1
    assert not (folder / "results").exists()


def test_a_source_is_imported_before_anything_else(repository, tmp_path):
    """A newer table imports again; a folder that is no source stops before any job."""
    folder = clone(repository, tmp_path / "clone")
    run = dry_run(folder, "synthea27nj")
    assert run.returncode != 0
    assert "no such folder: data/synthea27nj" in run.stdout + run.stderr
    cdm = folder / "data" / "synthea27nj"
    cdm.mkdir(parents=True)
    for name in ("person", "concept", "death"):
        (cdm / f"{name}.csv").write_text("")
    run = dry_run(folder, "synthea27nj")
    assert run.returncode == 0, run.stderr[-2000:]
    jobs = planned(run)
    assert (jobs["import_source"], jobs["check"], jobs["pretrain"]) == (1, 1, 2)
    assert "simulate" not in jobs


def test_a_study_without_the_labels_of_one_task_names_it(repository, tmp_path, write_meds, write_given_labels):
    folder = clone(repository, tmp_path / "clone")
    rows = pl.DataFrame({"subject_id": [1], "time": [None], "code": ["MEDS_BIRTH"]})
    data = write_meds(folder / "data" / "ehrshot", {"0": rows})
    tasks = yaml.safe_load((repository / "pipelines/studies/ehrshot.yaml").read_text())["tasks"]
    write_given_labels(data / "labels", [t for t in tasks if t != "new_lupus"], [1])
    run = dry_run(folder, "ehrshot")
    assert run.returncode != 0
    assert "no labels of 'new_lupus' in data/ehrshot/labels" in run.stdout + run.stderr


def test_an_own_task_meets_its_own_labels(repository, tmp_path, write_meds, write_given_labels):
    """A task is known by its name, wherever its file lies; a space in the path is no separator."""
    folder = clone(repository, tmp_path / "clone")
    rows = pl.DataFrame({"subject_id": [1], "time": [None], "code": ["MEDS_BIRTH"]})
    write_meds(folder / "meds", {"0": rows})
    definition = yaml.safe_load((repository / "ehrctx/tasks/definitions/guo_los.yaml").read_text()) | {"task": "mine"}
    (folder / "my tasks").mkdir()
    (folder / "my tasks" / "stay.yaml").write_text(yaml.safe_dump(definition))
    write_given_labels(folder / "labels", ["mine"], [1])
    study = {
        "name": "own", "data": "meds", "models": ["gpt-tiny-64"], "tasks": ["my tasks/stay.yaml"],
        "labels": {"given": "labels"},
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    run = snakemake(folder, "--dry-run", "--printshellcmds", study=["--configfile", "own.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "--task 'my tasks/stay.yaml'" in run.stdout + run.stderr


def test_given_draws_are_watched(repository, tmp_path):
    """A file for every task, or a sentence before any job; a newer one fits the heads again."""
    folder = clone(repository, tmp_path / "clone")
    study = yaml.safe_load((repository / "pipelines/studies/smoke.yaml").read_text())
    study["probe"]["few_shot"]["shots"] = "my shots"
    study["tasks"] = ["guo_los", "new_lupus"]
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    for name in ("guo_los/all_shots_data.json", "new_lupus/few_shots_data.json"):
        said = snakemake(folder, "--dry-run", study=["--configfile", "own.yaml"])
        assert said.returncode != 0
        assert f"no draws of '{name.partition('/')[0]}' in my shots" in said.stdout + said.stderr
        (folder / "my shots" / name).parent.mkdir(parents=True)
        (folder / "my shots" / name).touch()
    run = snakemake(folder, "--dry-run", study=["--configfile", "own.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr
    inputs = re.findall(r"rule (probe\w*):\n    input: ([^\n]*)", run.stdout + run.stderr)
    assert {rule for rule, _ in inputs} == {"probe", "probe_counts"}
    for _, named in inputs:
        assert named.startswith("my shots/guo_los/all_shots_data.json, my shots/new_lupus/few_shots_data.json, ")


def test_label_files_are_tasks_and_are_watched(repository, tmp_path):
    """Made and given tasks in one study; a newer label file labels again."""
    folder = clone(repository, tmp_path / "clone")
    (folder / "my labels" / "fall" / "train").mkdir(parents=True)
    files = [folder / "my labels" / name for name in ("sepsis.csv", "fall/train/0.parquet")]
    for file in files:
        file.touch()
    study = yaml.safe_load((repository / "pipelines/studies/smoke.yaml").read_text())
    study["tasks"] = ["guo_los", "my labels/sepsis.csv", "my labels/fall"]
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    words = ["--dry-run", "--printshellcmds", "results/smoke/labels"]
    run = snakemake(folder, *words, study=["--configfile", "own.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr
    said = run.stdout + run.stderr
    assert "--task guo_los --task 'my labels/sepsis.csv' --task 'my labels/fall'" in said
    (rule,) = [part for part in said.split("\n\n") if "rule label:" in part]
    (inputs,) = [line for line in rule.splitlines() if line.strip().startswith("input:")]
    assert all(str(file.relative_to(folder)) in inputs for file in files)
    files[0].unlink()
    run = snakemake(folder, *words, study=["--configfile", "own.yaml"])
    assert run.returncode != 0
    assert "no such label file: my labels/sepsis.csv." in run.stdout + run.stderr


def test_an_ontology_is_an_input_of_the_labels(repository, tmp_path, write_meds, write_athena):
    folder = clone(repository, tmp_path / "clone")
    write_meds(folder / "meds", {"0": pl.DataFrame({"subject_id": [1], "time": [None], "code": ["MEDS_BIRTH"]})})
    write_athena(folder / "my vocabulary", {"CONCEPT.csv": [], "CONCEPT_ANCESTOR.csv": []})
    study = {
        "name": "own",
        "data": "meds",
        "models": ["gpt-tiny-64"],
        "tasks": ["guo_los"],
        "ontology": "my vocabulary",
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    words, configured = ["--dry-run", "--printshellcmds"], ["--configfile", "own.yaml"]
    run = snakemake(folder, *words, study=configured)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "--ontology 'my vocabulary'" in run.stdout + run.stderr
    assert "my vocabulary/CONCEPT_ANCESTOR.csv" in run.stdout + run.stderr
    (folder / "my vocabulary" / "CONCEPT.csv").unlink()
    run = snakemake(folder, *words, study=configured)
    assert run.returncode != 0
    assert "the ontology my vocabulary has no CONCEPT.csv" in run.stdout + run.stderr


def test_a_model_starts_from_another_of_its_study_or_from_a_folder(repository, tmp_path):
    folder = clone(repository, tmp_path / "clone")
    (folder / "my models" / "gpt").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "my models" / "gpt" / name).write_text("{}")
    study = yaml.safe_load((repository / "pipelines/studies/smoke.yaml").read_text())
    study["models"] = ["hyena-tiny-128", "hyena-tiny-64", "gpt-tiny-64"]
    study["start_from"] = {"hyena-tiny-128": "hyena-tiny-64", "gpt-tiny-64": "my models/gpt"}
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    words = ["--dry-run", "--printshellcmds", "results/smoke/models/hyena-tiny-128", "results/smoke/models/gpt-tiny-64"]
    run = snakemake(folder, *words, study=["--configfile", "own.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert planned(run)["pretrain"] == 3
    trainings = [line for line in (run.stdout + run.stderr).splitlines() if "ehrctx pretrain" in line]
    starts = {re.search(r"--model (\S+)", line)[1]: re.search(r"--from ('.+?'|\S+)", line) for line in trainings}
    assert {model: found and found[1] for model, found in starts.items()} == {
        "hyena-tiny-64": None, "hyena-tiny-128": "results/smoke/models/hyena-tiny-64", "gpt-tiny-64": "'my models/gpt'",
    }  # fmt: skip


def test_a_study_without_a_folder_to_start_from_stops_before_any_job(repository, tmp_path):
    folder = clone(repository, tmp_path / "clone")
    study = yaml.safe_load((repository / "pipelines/studies/smoke.yaml").read_text())
    study["start_from"] = {"gpt-tiny-64": "published/gpt"}
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    run = snakemake(folder, study=["--configfile", "own.yaml"])
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert "`start_from` of gpt-tiny-64: no such folder: published/gpt. Give a folder on this machine" in said
    assert len([line for line in said.splitlines() if "published/gpt" in line]) == 1
    assert not (folder / "results").exists()


def test_a_study_is_run_by_one_workflow_at_a_time(finished):
    import fcntl

    folder, _ = finished
    with (folder / "results/smoke/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = snakemake(folder, "--forcerun", "report")
    assert run.returncode != 0
    assert "another run of the study" in run.stdout + run.stderr


def test_killed_and_started_again_ends_with_the_same_weights(finished, repository, tmp_path):
    done, _ = finished
    folder = clone(repository, tmp_path / "clone")
    target = "results/smoke/models/hyena-tiny-128"
    words = [*SNAKEMAKE, target, *SMOKE]
    # without checkpoint_seconds, so that the settings, and with them the weights, are those of the finished study
    checkpoint = folder / "results/smoke/checkpoints/hyena-tiny-128/run.json"
    running = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert checkpoint.exists()
    os.killpg(running.pid, signal.SIGKILL)  # the workflow and its jobs, in the middle of the training
    running.wait()
    assert not (folder / target).exists()
    again = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    assert (folder / target / "model.safetensors").read_bytes() == (done / target / "model.safetensors").read_bytes()


def test_odd_names_of_folders_and_files_are_names(repository, tmp_path, write_meds):
    """Brackets are no patterns, and a space is no separator, in data, tokenizer and profile; braces are refused."""
    folder = clone(repository, tmp_path / "a clone")
    rows = pl.DataFrame({
        "subject_id": [s for s in range(9) for _ in range(3)],
        "time": [datetime(2000, 1, day) for _ in range(9) for day in (1, 2, 3)],
        "code": ["MEDS_BIRTH", "a", "b"] * 9,
    })  # fmt: skip
    splits = dict(enumerate(["train"] * 5 + ["tuning"] * 2 + ["held_out"] * 2))
    write_meds(folder / "my [data] 'quoted'", {"0": rows}, splits)
    for name, source in {
        "clmbr_4k copy": "tokenizers/clmbr_4k",
        "my profile": "pipelines/datasets/simulated",
    }.items():
        (folder / f"{name}.yaml").write_text((repository / f"{source}.yaml").read_text())
    profile = (
        (folder / "my profile.yaml").read_text().replace("visit_column: visit_id", "").replace("unit_column: unit", "")
    )
    (folder / "my profile.yaml").write_text(profile)
    study = {
        "name": "odd", "data": "my [data] 'quoted'", "profile": "./my profile.yaml",
        "tokenizer": "./clmbr_4k copy.yaml", "models": ["gpt-tiny-64"], "tasks": ["guo_los"],
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(study))
    timelines = "results/odd/timelines/clmbr_4k copy"
    run = snakemake(folder, "--", timelines, study=["--configfile", "own.yaml"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert (folder / timelines / "tokens.npy").is_file()
    assert json.loads((folder / "results/odd/events/summary.json").read_text())["subjects"] == 9
    (folder / "my [data] 'quoted'").rename(folder / "my {model}")
    shutil.copy(folder / "clmbr_4k copy.yaml", folder / "clmbr {4k}.yaml")
    for key, name in (("data", "my {model}"), ("tokenizer", "./clmbr {4k}.yaml")):
        (folder / "data").unlink(missing_ok=True)
        (folder / "data").symlink_to(folder / "my {model}")
        (folder / "own.yaml").write_text(yaml.safe_dump(study | {"data": "data", key: name}))
        refused = snakemake(folder, "--dry-run", study=["--configfile", "own.yaml"])
        assert refused.returncode != 0
        assert f"{Path(name)}" in refused.stdout + refused.stderr
        assert "takes braces for wildcards. Rename it, or give a link" in refused.stdout + refused.stderr


def test_a_training_killed_after_an_edit_leaves_no_old_result(finished, tmp_path):
    """The job alone is killed: Snakemake has deleted its model, and what depends on it is there."""
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    model, study = "results/smoke/models/gpt-tiny-64", folder / "own.yaml"
    text = (folder / "pipelines/studies/smoke.yaml").read_text()
    study.write_text(text.replace("tokens: 12_000", "tokens: 2_000_000"))
    running = subprocess.Popen(
        [*SNAKEMAKE, model, "--configfile", "own.yaml"], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    jobs = await_jobs(
        folder, "pretrain", lambda: (folder / "results/smoke/checkpoints/gpt-tiny-64.replaced-1").exists()
    )
    for job in jobs:
        os.kill(job, signal.SIGKILL)
    assert running.wait() != 0
    assert not (folder / model).exists()
    again = planned(snakemake(folder, "--dry-run", study=["--configfile", "own.yaml"]))
    assert {"pretrain", "embed", "probe", "score", "robustness", "report"} <= set(again)
    # edited back: what the study had learned before is not taken for it either
    assert "pretrain" in planned(snakemake(folder, "--dry-run"))


def test_a_study_stopped_while_it_scores_ends_with_its_own_scores(finished, tmp_path):
    """Edited, stopped in the middle of scoring, edited back: the tables are those of before, to the byte."""
    folder = shutil.copytree(finished[0], tmp_path / "copy", symlinks=True)
    target = "results/smoke/report/provenance.json"
    words = [*SNAKEMAKE, target, *SMOKE, "--config", "statistics={replicates: 2000}"]
    running = subprocess.Popen(
        words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert await_jobs(folder, "score")
    os.killpg(running.pid, signal.SIGTERM)
    running.wait()
    again = snakemake(folder, "--", target)
    assert again.returncode == 0, again.stderr[-3000:]
    for table in ("scores", "differences", "calibration"):
        file = f"results/smoke/report/{table}.csv"
        assert (folder / file).read_bytes() == (finished[0] / file).read_bytes()


def await_jobs(folder, verb, is_time=lambda: True):
    """The processes of `ehrctx <verb>` in `folder`, as soon as there are some and it is time."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if (jobs := processes(folder, verb)) and is_time():
            return jobs
        time.sleep(0.05)
    return []
