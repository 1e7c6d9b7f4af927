"""The whole workflow on the smoke study: it ends with a report, does nothing twice, and survives being killed."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

SNAKEMAKE = [str(Path(sys.executable).parent / "snakemake"), "--cores", "2"]
SMOKE = ["--configfile", "pipelines/studies/smoke.yaml"]
PARTS = ("Snakefile", "pipelines", "tokenizers", "notebooks", "profiles")
NEEDED = ("ehrctx", "papermill", "jupyter")

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
    """The rules that a dry run would execute."""
    table = run.stdout.partition("Job stats:")[2].partition("total")[0]
    return set(re.findall(r"^(\w+)\s+\d+$", table, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory):
    missing = [c for c in NEEDED if not (Path(sys.executable).parent / c).exists()]
    if missing:
        pytest.skip(f"the extra `notebooks` is not installed: no command {', '.join(missing)}")
    folder = clone(repository, tmp_path_factory.mktemp("workflow"))
    run = snakemake(folder)
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, run


def test_the_report_holds_every_number_that_the_tables_hold(finished):
    folder, _ = finished
    report = folder / "results/smoke/report"
    page = (report / "index.html").read_text()
    scores = pl.read_csv(report / "scores.csv")
    assert ",".join(scores.columns) == "task,model,head,k,replicate,score,value,lower,upper,n,n_positive,n_subjects"
    assert set(scores["model"]) == {"gpt-tiny-64", "mamba-tiny-128", "counts"}
    assert scores.height == 3 * 3 * 3
    assert (scores["lower"] <= scores["value"]).all()
    assert (scores["value"] <= scores["upper"]).all()
    for value in scores["value"]:
        assert f"{value:.3f}" in page
    assert not re.search(r"(src|href)=[\"'](?!data:)", page)  # self-contained


def test_the_notebook_was_executed(finished):
    folder, _ = finished
    cells = json.loads((folder / "results/smoke/report/overview.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error" or o.get("name") == "stderr"]


def test_no_subject_is_named_in_the_tables(finished):
    folder, _ = finished
    for table in (folder / "results/smoke/report").glob("*.csv"):
        assert "subject_id" not in table.read_text()


def test_every_model_has_one_run_in_mlflow(finished):
    folder, _ = finished
    with sqlite3.connect(folder / "results/mlflow.db") as store:
        runs = store.execute("select name, status from runs where lifecycle_stage = 'active'").fetchall()
        metrics = {key for (key,) in store.execute("select distinct key from metrics")}
    assert sorted(runs) == [("counts", "FINISHED"), ("gpt-tiny-64", "FINISHED"), ("mamba-tiny-128", "FINISHED")]
    assert {"validation_loss", "tokens_per_second", "real_token_share", "auroc/guo_los"} <= metrics


def test_a_finished_study_runs_nothing_again(finished):
    folder, _ = finished
    again = snakemake(folder)
    assert again.returncode == 0
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        ("statistics={replicates: 200}", {"score", "report", "notebook", "all"}),
        ("probe={max_iterations: 500}", {"probe", "probe_counts", "score", "report", "notebook", "all"}),
    ],
)
def test_a_changed_key_runs_only_what_depends_on_it(finished, key, rules):
    folder, _ = finished
    assert planned(snakemake(folder, "--dry-run", "--config", key)) == rules


def test_an_unknown_key_stops_before_any_job(repository, tmp_path):
    folder = clone(repository, tmp_path / "clone")
    run = snakemake(folder, "--config", "tokeniser=clmbr")
    assert run.returncode != 0
    assert "unknown key `tokeniser`; did you mean 'tokenizer'?" in run.stdout + run.stderr
    assert not (folder / "results").exists()


def test_the_shipped_studies_are_valid(repository, tmp_path, mimic_demo):
    folder = clone(repository, tmp_path / "clone")
    for study, words in (("demo", []), ("mimic_iv_demo", ["--config", f"data={mimic_demo}"])):
        run = snakemake(folder, "--dry-run", *words, study=["--configfile", f"pipelines/studies/{study}.yaml"])
        assert run.returncode == 0, run.stderr
        assert {"tokenize", "pretrain", "embed", "probe", "score", "report"} <= planned(run)


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
    target = "results/smoke/models/mamba-tiny-128"
    words = [*SNAKEMAKE, target, *SMOKE]
    # without checkpoint_seconds, so that the settings, and with them the weights, are those of the finished study
    checkpoint = folder / "results/smoke/checkpoints/mamba-tiny-128/run.json"
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
