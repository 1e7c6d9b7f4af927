"""The controls in small, end to end: the commands that the workflow plans, in its order, but all in this process."""

import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from ehrctx.controls.arms import LEVELS
from ehrctx.controls.tables import AUROC_SCHEMA, SCHEMA

PARTS = ("Snakefile", "pipelines", "tokenizers", "profiles")
COMMAND = "Shell command: ehrctx "
FAR = {"distance_tokens": 64}
SHORT, LONG = ["llama-tiny-64"], ["llama-tiny-256"]
PLANTED = {"copy_rate": [0, 0.3, 0.6], "gap_shape": [0.6, 1.2, 2.5], "visit_rate": [1, 3, 9]}


def simulated(subjects, **parameters):
    return {"simulate": {"subjects": subjects, "parameters": parameters}}


@pytest.fixture(scope="module")
def design(repository):
    """Fewer subjects, tokens, models and levels than the shipped controls have."""
    shipped = yaml.safe_load((repository / "pipelines" / "studies" / "controls.yaml").read_text())
    calmly = shipped["steady"]["simulate"]["parameters"]
    nothing_measured = {"progression": 0, "stays": {"tested": 0}}
    shared = shipped["shared"]
    shared["simulate"]["subjects"] = 700
    shared["models"] = [*SHORT, *LONG]
    shared["splits"] = {"hash": [0.4, 0.1, 0.5]}
    shared["pretraining"] |= {"tokens": 20_000, "tokens_per_step": 2_048}
    return {
        "name": "small",
        "statistics": {"replicates": 1_000},
        "bars": {"equal": 0.2},
        "shared": shared,
        "far": simulated(700, cause=FAR),
        "near": simulated(700, cause={"distance_tokens": 0}),
        "hidden": simulated(700, cause=FAR | {"shown": False}) | {"models": SHORT},
        "needle": simulated(700, cause=FAR | {"events": 1}) | {"models": LONG},
        "permuted": {"labels": {"permuted": 1}, "models": SHORT, "tasks": ["guo_los", "new_acutemi"]},
        "steady": simulated(200, **calmly) | {"models": LONG},
        "progressing": simulated(200, **(calmly | {"progression": 3})) | {"models": LONG},
        **{
            f"{name}_levels": {"tasks": ["guo_los"]}
            | simulated(300, **nothing_measured, levels={"property": name, "values": values})
            for name, values in PLANTED.items()
        },
    }


@pytest.fixture(scope="module")
def report(repository, design, tmp_path_factory):
    """The folder of the controls' page and tables."""
    from ehrctx.cli import main

    folder = tmp_path_factory.mktemp("controls")
    for part in PARTS:
        (folder / part).symlink_to(repository / part)
    (folder / "small.yaml").write_text(yaml.safe_dump(design))
    snakemake = Path(sys.executable).parent / "snakemake"
    plan = subprocess.run(
        [snakemake, "--cores", "1", "--configfile", "small.yaml", "--dry-run", "--printshellcmds"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert plan.returncode == 0, plan.stderr[-3000:]
    commands = [line.removeprefix(COMMAND) for line in plan.stdout.splitlines() if line.startswith(COMMAND)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in commands:
            patch.setattr(sys, "argv", ["ehrctx", *shlex.split(command)])
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == 0, command
    return folder / "results/small/report"


@pytest.mark.timeout(600)
def test_every_statement_holds(report):
    table = pl.read_csv(report / "controls.csv", schema_overrides=SCHEMA)
    judged = table.drop_nulls("holds")
    assert dict(judged.group_by("control").len().iter_rows()) == {
        "positive": 4,
        "negative": 1,
        "properties": 7,
        "progression": 1,
    }
    assert judged.filter(~pl.col("holds")).rows() == []
    told = table.filter(pl.col("holds").is_null())
    assert dict(told.group_by("arm").len().iter_rows()) == {
        "needle": 1,
        "copy_rate_levels": 2,
        "gap_shape_levels": 2,
        "visit_rate_levels": 3,
    }


def test_the_long_context_finds_what_the_oracle_knows(report):
    aurocs = pl.read_csv(report / "aurocs.csv", schema_overrides=AUROC_SCHEMA)
    of = {(arm, model): value for arm, model, value in aurocs.select("arm", "model", "auroc").iter_rows()}
    assert of["far", "llama-tiny-64"] < 0.65 < 0.75 < of["far", "llama-tiny-256"]
    assert of["far", "oracle"] == of["hidden", "oracle"]  # the same subjects, the same outcomes
    assert of["hidden", "llama-tiny-64"] < 0.65


def test_all_levels_are_told(report):
    levels = pl.read_csv(report / "levels.csv")
    assert set(levels["planted"]) == {arm.removesuffix("_levels") for arm in LEVELS}
    for name, values in PLANTED.items():
        assert set(levels.filter(planted=name)["level"]) == set(values)


def test_the_page_counts_what_holds(report):
    page = (report / "index.html").read_text()
    assert "13 of 13 statements hold" in page
    assert page.count("data:image/svg+xml;base64,") == 4
