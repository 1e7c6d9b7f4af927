"""The command line: bad input is one sentence and exit code 2, and nothing half-written is left behind."""

import json
import subprocess
import sys

import polars as pl
import pytest
import typer
import yaml

from ehrctx import cli
from ehrctx.artifacts import new_artifact
from ehrctx.cli import shield_negative_ids
from ehrctx.study import ModelId
from ehrctx.tasks.label_sets import read_labels

EVENTS = {
    "subject_id": [987654321, 987654321],
    "time": [None, None],
    "code": ["GENDER//F", "MEDS_BIRTH"],
}


@pytest.fixture
def data(tmp_path):
    """Writes one shard with these columns as a MEDS folder."""

    def write(frame):
        folder = tmp_path / "meds"
        (folder / "data").mkdir(parents=True)
        (folder / "metadata").mkdir()
        frame.write_parquet(folder / "data" / "0.parquet")
        return folder

    return write


def frame(**changes):
    columns = EVENTS | changes
    return pl.DataFrame(columns).with_columns(pl.col("time").cast(pl.Datetime("us"), strict=False))


def test_no_such_folder(run):
    code, _, said = run("check", "/no/such/folder")
    assert code == 2
    assert said.startswith("error: no such folder: /no/such/folder")


def test_missing_column(run, data):
    code, _, said = run("check", data(frame().drop("code")))
    assert code == 2
    assert "data/0.parquet: the column 'code' is missing" in said


def test_wrong_type(run, data, tmp_path):
    folder = data(frame().with_columns(time=pl.lit("12/31/2020")))
    code, _, said = run("split", folder, "--splits", "{hash: [.5, .2, .3]}", "--out", tmp_path / "splits.parquet")
    assert code == 2
    assert "the column 'time' is large_string, expected a date-time" in said
    assert not (tmp_path / "splits.parquet").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("tokenize", "--splits", "s.parquet"),
        ("count", "--splits", "s.parquet", "--part", "1-of-1"),
        ("fit", "--splits", "s.parquet", "--counted", "c"),
        ("encode", "--splits", "s.parquet", "--counted", "c", "--vocabulary", "v"),
        ("gather", "--splits", "s.parquet", "--vocabulary", "v", "--encoded", "e"),
        ("label", "--task", "guo_los"),
        ("groups", "--labels", "l"),
    ],
    ids=lambda words: words[0],
)
def test_a_profile_must_be_named_for_data_that_are_not_simulated(run, data, tmp_path, words):
    """Another data set's profile finds no visits and no units, and says nothing."""
    command, *rest = words
    code, _, said = run(command, data(frame()), *rest, "--out", tmp_path / "out")
    assert code == 2
    assert "--profile is missing" in said
    assert "(ehrshot, mimic_iv, omop, simulated)" in said
    assert not (tmp_path / "out").exists()


def test_unsorted_subject_is_named_by_row_and_not_by_id(run, data, tmp_path):
    later_first = pl.Series([1_000_000, 0]).cast(pl.Datetime("us"))
    folder = data(frame(time=later_first))
    pl.DataFrame({"subject_id": [987654321], "split": ["train"]}).write_parquet(tmp_path / "splits.parquet")
    out, profile = tmp_path / "timelines", folder / "profile.yaml"
    profile.write_text("{name: own}")
    code, _, said = run("tokenize", folder, "--splits", tmp_path / "splits.parquet", "--profile", profile, "--out", out)
    assert code == 2
    assert "data/0.parquet, row 2: time goes back" in said
    assert "987654321" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meds", "splits.parquet"]


def test_empty_split(run, data, tmp_path):
    code, _, said = run("split", data(frame()), "--splits", "{hash: [.5, .2, .3]}", "--out", tmp_path / "s.parquet")
    assert code == 2
    assert "has events of fewer than 3 subjects" in said


def test_unknown_settings_key_names_the_nearest(run, cohort, tmp_path):
    words = ["--timelines", cohort.timelines, "--model", "gpt-tiny-64", "--out", tmp_path / "model"]
    code, _, said = run("pretrain", *words, "--settings", "{tokns: 10}")
    assert code == 2
    assert "unknown key `tokns`; did you mean 'tokens'?" in said
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture(run, cohort, tmp_path):
    code, _, said = run("pretrain", "--timelines", cohort.timelines, "--model", "mmba-tiny-64", "--out", tmp_path / "m")
    assert code == 2
    assert "did you mean 'mamba'?" in said


def test_context_longer_than_the_positions_of_gpt(run, cohort, tmp_path):
    settings = "{tokens: 1000, tokens_per_step: 500, batch_tokens: 500, threads: 1, validations: 1}"
    model = tmp_path / "model"
    code, _, _ = run(
        "pretrain", "--timelines", cohort.timelines, "--model", "gpt-tiny-32", "--out", model, "--settings", settings
    )
    assert code == 0
    shared = ["--model", model, "--timelines", cohort.timelines, "--labels", cohort.labels, "--threads", 1]
    code, _, said = run("embed", *shared, "--out", tmp_path / "embeddings", "--context", 64)
    assert code == 2
    assert "longer than the 32 positions" in said
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "hyna-tiny-64"], "did you mean 'hyena'?"),
        (["--model", "gpt-tiny-64", "--timelines", "nowhere"], "nowhere is not a finished timelines folder"),
        (["--model", "gpt-tiny-64", "--from", "nowhere"], "--from: no such folder: nowhere"),
        (["--model", "mamba-tiny-64", "--settings", "{scan: triton, accelerator: cpu}"], "pretraining.scan"),
        (["--model", "gpt-tiny-64", "--settings", "{batch_tokens: 0}"], "`batch_tokens`"),
    ],
)
def test_a_training_that_is_refused_leaves_nothing_behind(run, cohort, tmp_path, words, said):
    """No run in MLflow either, and no folder of checkpoints."""
    where = ["--timelines", cohort.timelines, "--out", tmp_path / "model", "--tracking", tmp_path / "mlflow.db"]
    code, out, error = run("pretrain", *where, *words)
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_valid_data_set_is_summarised(run, cohort, tmp_path):
    code, out, _ = run("check", cohort.events, "--out", tmp_path / "summary.json")
    assert code == 0
    assert '"subjects": 400' in out
    assert (tmp_path / "summary.json").is_file()


# --- plan ---


@pytest.fixture
def known_speed(monkeypatch):
    """A machine of 10 GFLOP/s, so that nothing is measured."""
    import ehrctx.pretrain.plan as plan

    monkeypatch.setattr(plan, "matmul_rate", lambda *_: 1e10)


def test_plan_as_json_is_json(run, known_speed, repository):
    code, out, _ = run("plan", "smoke", "--json")
    assert code == 0
    found = json.loads(out)
    study = yaml.safe_load((repository / "pipelines/studies/smoke.yaml").read_text())
    assert found["study"] == "smoke"
    assert [row["model"] for row in found["models"]] == study["models"]
    for row in found["models"]:
        assert row["tokens"] == study["pretraining"]["tokens"]
        assert row["steps"] == 6  # 12,000 tokens, 2,000 a step
        assert 100_000 < row["parameters"] < 2_000_000
        # trainings of both have reached four to five tenths of the matrix products' rate on a CPU
        assert row["seconds"] == pytest.approx(row["petaflop"] * 1e15 / 1e10 / 0.45, rel=0.2)
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["models"]))


def test_plan_takes_the_name_or_the_path_of_a_study(run, known_speed, repository):
    by_name = run("plan", "smoke")
    by_path = run("plan", repository / "pipelines/studies/smoke.yaml")
    assert by_name == by_path
    code, out, _ = by_name
    assert code == 0
    assert out.startswith("smoke: 2 models on")
    for words in ("gpt-tiny-64", "hyena-tiny-128", "12,000", "GFLOP/s", "Times are estimates"):
        assert words in out


def test_plan_measures_this_machine(run):
    code, out, _ = run("plan", "smoke", "--json")
    assert code == 0
    assert json.loads(out)["gflop_per_second"] > 0.1


def test_plan_of_an_unknown_study_names_the_nearest(run):
    code, out, said = run("plan", "contxt_clues")
    assert (code, out) == (2, "")
    assert said == "error: no study 'contxt_clues' in pipelines/studies; did you mean 'context_clues'?\n"
    code, _, said = run("plan", "zzz")
    assert code == 2
    assert "known: context_clues, controls, demo, ehrshot, mimic_iv_demo, smoke, synthea27nj." in said
    code, _, said = run("plan", "no/such/study.yaml")
    assert code == 2
    assert said == "error: no such study file: no/such/study.yaml.\n"


def test_plan_of_a_wrong_study_is_refused(run, tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text("name: mine\nsimulate: {}\nmodels: [hyna-tiny-64]\ntasks: [guo_los]\n")
    code, out, said = run("plan", study)
    assert (code, out) == (2, "")
    assert "did you mean 'hyena'?" in said


# --- properties, perplexity, robustness, report ---


@pytest.fixture(scope="module")
def untrained(cohort, tmp_path_factory):
    """A gpt-tiny-32 that never saw a token, as the folder of a trained model."""
    from ehrctx.models.model import build_model, save_model
    from ehrctx.pretrain.trained import KIND
    from ehrctx.timelines.store import Timelines

    folder = tmp_path_factory.mktemp("untrained") / "gpt-tiny-32"
    model = build_model(ModelId.parse("gpt-tiny-32"), Timelines.open(cohort.timelines).vocabulary_size, 0)
    inputs, facts = {"timelines": cohort.timelines}, {"arch": "gpt", "context": 32}
    with new_artifact(folder, KIND, {"model": "gpt-tiny-32"}, inputs, facts) as partial:
        save_model(model, partial)
    return folder


def test_properties_are_written_for_every_prediction_time(run, cohort, tmp_path):
    out = tmp_path / "properties"
    code, said, _ = run("properties", "--timelines", cohort.timelines, "--labels", cohort.labels, "--out", out)
    assert code == 0
    times = pl.concat(
        [labels.select("subject_id", "prediction_time") for labels in read_labels(cohort.labels).values()]
    )
    assert json.loads(said)["rows"] == times.n_unique() == pl.read_parquet(out / "properties.parquet").height


@pytest.mark.parametrize("missing", ["timelines", "labels"])
def test_properties_of_what_is_not_finished(run, cohort, tmp_path, missing):
    folders = {"timelines": cohort.timelines, "labels": cohort.labels, missing: tmp_path}
    words = [word for name, folder in folders.items() for word in (f"--{name}", folder)]
    code, out, said = run("properties", *words, "--out", tmp_path / "properties")
    assert (code, out) == (2, "")
    assert said.startswith(f"error: {tmp_path} is not a finished {missing} folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{stride: 32}", "perplexity.stride is 32, more than a window of 32 holds. Use a smaller stride."),
        ("{window: 64}", "gpt-tiny-32 learned 32 positions. Use at most 32, or leave it out."),
        ("{strid: 8}", "unknown key `strid`; did you mean 'stride'?"),
        ("{stride: 0}", "`stride`: Input should be greater than or equal to 1"),
        ("{stride: [", "--settings: not valid YAML"),
    ],
)
def test_perplexity_with_wrong_settings(run, cohort, untrained, tmp_path, settings, words):
    shared = ["--model", untrained, "--timelines", cohort.timelines, "--threads", 1]
    code, out, said = run("perplexity", *shared, "--settings", settings, "--out", tmp_path / "losses")
    assert (code, out) == (2, "")
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{windows: gird}", "--settings: `windows`: expected 'exact' or 'grid', found 'gird'"),
        ("{pooling: max}", "--settings: `pooling`: expected 'last' or 'mean', found 'max'"),
        ("{poolin: mean}", "unknown key `poolin`; did you mean 'pooling'?"),
    ],
)
def test_embed_with_wrong_settings(run, cohort, untrained, tmp_path, settings, words):
    shared = ["--model", untrained, "--timelines", cohort.timelines, "--labels", cohort.labels]
    code, out, said = run("embed", *shared, "--settings", settings, "--out", tmp_path / "embeddings")
    assert (code, out) == (2, "")
    assert words in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_perplexity_of_a_model_that_is_not_finished(run, cohort, tmp_path):
    words = ["--model", tmp_path, "--timelines", cohort.timelines, "--out", tmp_path / "losses"]
    code, _, said = run("perplexity", *words)
    assert code == 2
    assert said.startswith(f"error: {tmp_path} is not a finished model folder")
    assert list(tmp_path.iterdir()) == []


def test_perplexity_by_position_from_the_command_line(run, cohort, untrained, tmp_path):
    """Losses of every held-out token, and with them the tables; predictions of other labels are refused."""
    losses, out = tmp_path / "losses", tmp_path / "tables"
    shared = ["--timelines", cohort.timelines]
    code, said, _ = run("perplexity", "--model", untrained, *shared, "--out", losses, "--settings", "{subjects: 5}")
    assert code == 0
    facts = json.loads(said)
    assert (facts["subjects"], facts["window"], facts["stride"]) == ("<10", 32, 16), "few people are not counted aloud"
    table = pl.read_parquet(losses / "losses.parquet")
    assert table["subject_id"].n_unique() == 5
    assert facts["tokens_scored"] == table.height

    properties, counts = tmp_path / "properties", tmp_path / "counts"
    assert run("properties", *shared, "--labels", cohort.labels, "--out", properties)[0] == 0
    probe = "{regularization: [1.0e-2], max_iterations: 50, baselines: [logistic_regression]}"
    words = ["--labels", cohort.labels, "--settings", probe]
    assert run("probe", *shared, *words, "--out", counts)[0] == 0
    asked = ["--predictions", counts, "--properties", properties, "--losses", losses, "--out", out]
    options = ["--statistics", "{replicates: 20}", "--perplexity", "{minimum_tokens: 5, minimum_subjects: 5}"]

    code, _, said = run("robustness", *asked, "--statistics", "{replicate: 20}")
    assert code == 2
    assert said == "error: --statistics: unknown key `replicate`; did you mean 'replicates'?\n"
    code, _, said = run("robustness", *asked, "--privacy", "{minimum_count: 0}")
    assert code == 2
    assert "--privacy: `minimum_count`: Input should be greater than or equal to 1" in said
    code, _, said = run("robustness", *asked[:2], "--properties", tmp_path, *asked[4:])
    assert code == 2
    assert f"{tmp_path} is not a finished properties folder" in said
    assert not out.exists()

    code, said, _ = run("robustness", *asked, *options)
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == ["perplexity.csv", "robustness.json", "strata.csv"]
    assert f"{out}/strata.csv: {pl.read_csv(out / 'strata.csv').height} rows" in said

    other = tmp_path / "other"
    stay = ["--profile", "simulated", "--task", "guo_los", "--out", other]
    assert run("label", cohort.events, *stay)[0] == 0
    assert run("properties", *shared, "--labels", other, "--out", properties)[0] == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    code, _, said = run("robustness", *asked, *options)
    assert code == 2
    assert "made from different labels" in said
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_report_without_tables_names_the_verb(run, cohort, tmp_path):
    study = "{name: mine, data: x, models: [gpt-tiny-64], tasks: [guo_los]}"
    words = ["--tables", tmp_path, "--timelines", cohort.timelines, "--summary", tmp_path / "summary.json"]
    code, _, said = run("report", *words, "--study", study, "--out", tmp_path / "index.html")
    assert code == 2
    assert said == f"error: {tmp_path}/scores.csv is missing. Run `ehrctx score` first.\n"
    assert list(tmp_path.iterdir()) == []


# --- export, and a start from a folder ---


def test_a_model_is_exported_and_another_starts_from_it(run, cohort, tmp_path):
    settings = "{tokens: 1000, tokens_per_step: 500, batch_tokens: 500, threads: 1, validations: 1}"
    shared = ["--timelines", cohort.timelines, "--settings", settings]
    model, exported, longer = tmp_path / "model", tmp_path / "exported", tmp_path / "longer"
    assert run("pretrain", *shared, "--model", "llama-tiny-32", "--out", model)[0] == 0
    asked = ["--model", model, "--timelines", cohort.timelines, "--out", exported]
    code, _, said = run("export", *asked, "--privacy", "{minimum_count: 0}")
    assert code == 2
    assert "--privacy: `minimum_count`" in said
    few, many = (run("export", *asked, "--privacy", f"{{minimum_count: {n}}}") for n in (1, 40))
    assert few[0] == many[0] == 0
    facts = json.loads(many[1])
    assert json.loads(few[1])["withheld"] == 0
    table = pl.read_parquet(exported / "vocabulary.parquet")
    assert facts["withheld"] == table.filter(pl.col("kind") == "withheld").height > 0
    code, out, said = run("pretrain", *shared, "--model", "llama-tiny-64", "--from", exported, "--out", longer)
    assert code == 0
    assert f"Starts from {exported}: {table.height:,} of {table.height:,} tokens (100.0%) keep" in said
    assert "made for at most 32 positions" in said
    assert json.loads(out)["start"] == {
        "vocabulary": "same", "rows_kept": 1.0, "earlier_tokens": facts["tokens"]
    }  # fmt: skip


def test_a_start_of_another_architecture_leaves_nothing_behind(run, cohort, untrained, tmp_path):
    words = ["--timelines", cohort.timelines, "--from", untrained, "--out", tmp_path / "model"]
    code, out, said = run("pretrain", *words, "--model", "llama-tiny-32")
    assert (code, out) == (2, "")
    assert said == (
        f"error: {untrained} holds a gpt, but the model to train is a llama. Name a gpt, or another folder.\n"
    )
    code, _, said = run("pretrain", *words, "--model", "gpt-tiny-64")
    assert code == 2
    assert "learned 32 positions, fewer than the context length of 64" in said
    assert list(tmp_path.iterdir()) == []


def test_an_export_without_finished_timelines_is_refused(run, untrained, tmp_path):
    words = ["--model", untrained, "--out", tmp_path / "exported", "--timelines", tmp_path / "nowhere"]
    code, out, said = run("export", *words)
    assert (code, out) == (2, "")
    assert said.startswith(f"error: {tmp_path}/nowhere is not a finished timelines folder")
    assert list(tmp_path.iterdir()) == []


# --- help, and what is imported ---

VERBS = {
    "check", "simulate", "split", "tokenize", "label", "pretrain", "export", "embed", "probe", "score", "properties",
    "perplexity", "robustness", "plan", "report", "track", "groups", "count", "fit", "encode", "gather", "show",
    "controls", "marginals", "import omop", "import ehrshot", "import femr",
}  # fmt: skip


def test_every_verb_and_every_option_is_explained():
    groups = {"": typer.main.get_command(cli.app).commands}
    groups["import "] = groups[""].pop("import").commands
    commands = {group + verb: command for group, verbs in groups.items() for verb, command in verbs.items()}
    assert set(commands) == VERBS
    for verb, command in commands.items():
        assert command.help, verb
        assert command.help[0].isupper(), verb
        for parameter in command.params:
            if parameter.name not in ("help", "out"):
                assert getattr(parameter, "help", None), f"{verb} {parameter.name}"


def test_help_of_every_verb_is_printed(run):
    for verb in sorted(VERBS):
        code, out, _ = run(*verb.split(), "--help")
        assert code == 0
        assert f"ehrctx {verb}" in out
        assert "--help" in out


def test_help_answers_at_once():
    """Less than a second of work, whatever else the machine does, and no library that takes longer."""
    script = (
        "import sys, time\n"
        "from ehrctx.cli import main\n"
        "for words in (['--help'], ['plan', '--help'], ['--version']):\n"
        "    sys.argv = ['ehrctx', *words]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0\n"
        "heavy = ('torch', 'polars', 'numpy', 'matplotlib', 'mlflow', 'sklearn', 'transformers', 'ehrctx.study')\n"
        "print([m for m in heavy if m in sys.modules], time.process_time())\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy, _, seconds = found.stdout.strip().splitlines()[-1].rpartition(" ")
    assert heavy == "[]"
    assert float(seconds) < 1.0


# What `ehrctx probe`, `score`, `properties`, `robustness` and `report` run.
PROBES = (
    "ehrctx.probe.predict, ehrctx.probe.score, ehrctx.robustness.properties, ehrctx.robustness.tables, "
    "ehrctx.report.page"
)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ehrctx.cli", ("torch", "polars", "numpy", "mlflow", "transformers")),
        ("ehrctx.pretrain.run", ("polars", "mlflow", "snakemake", "femr", "sklearn")),
        ("ehrctx.timelines.store", ("polars", "torch", "mlflow")),
        (PROBES, ("torch", "transformers", "lightning", "mlflow")),
    ],
)
def test_imports_stay_light(module, unwanted):
    # a GPU node may hold nothing but what training needs, and `ehrctx --help` answers at once
    script = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("words", "shielded"),
    [
        (["show", "-46", "--timelines", "tl"], ["show", "--timelines", "tl", "--", "-46"]),
        (["show", "--timelines", "tl", "-46"], ["show", "--timelines", "tl", "--", "-46"]),
        (["show", "--timelines=tl", "-46"], ["show", "--timelines=tl", "--", "-46"]),
        (["label", "d", "--explain", "-46", "--task", "t"], ["label", "d", "--explain", "-46", "--task", "t"]),
        (["show", "46", "-x"], ["show", "46", "-x"]),
        (["show", "--timelines", "tl", "--", "-46"], ["show", "--timelines", "tl", "--", "-46"]),
        ([], []),
    ],
)
def test_a_negative_number_is_never_an_option(words, shielded):
    assert shield_negative_ids(words) == shielded


def test_a_negative_subject_id_is_shown_and_explained(run, cohort, write_meds, tmp_path):
    events = pl.read_parquet(cohort.events / "data" / "00000.parquet")
    first = events.filter(pl.col("subject_id") == events["subject_id"][0]).with_columns(subject_id=pl.lit(-46))
    data = write_meds(tmp_path / "data", {"0": first}, {-46: "train"})
    splits = data / "metadata" / "subject_splits.parquet"
    timelines = tmp_path / "timelines"
    assert run("tokenize", data, "--splits", splits, "--out", timelines, "--profile", "simulated")[0] == 0
    code, shown, _ = run("show", -46, "--timelines", timelines)
    assert code == 0
    assert run("show", "--timelines", timelines, "--first", 3, -46)[0] == 0
    assert len(shown.splitlines()) > 5
    code, explained, _ = run("label", data, "--explain", -46, "--task", "guo_los", "--profile", "simulated")
    assert (code, explained.startswith("guo_los:")) == (0, True)
    code, _, said = run("show", -47, "--timelines", timelines)
    assert code == 2
    assert "-47" not in said


@pytest.mark.parametrize("option", ["-x", "--frist"])
def test_an_unknown_option_stays_an_error(run, tmp_path, option):
    code, _, said = run("show", -46, option, "--timelines", tmp_path)
    assert code == 2
    assert "No such option" in said
