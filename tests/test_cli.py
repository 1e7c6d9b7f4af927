"""The command line: bad input is one sentence and exit code 2, and nothing half-written is left behind."""

import subprocess
import sys

import polars as pl
import pytest

from ehrctx import cli

EVENTS = {
    "subject_id": [987654321, 987654321],
    "time": [None, None],
    "code": ["GENDER//F", "MEDS_BIRTH"],
}


@pytest.fixture
def run(monkeypatch, capsys, repository):
    """Runs `ehrctx` with these words in the repository's root; returns its exit code and what it said."""

    def command(*words):
        monkeypatch.chdir(repository)
        monkeypatch.setattr(sys, "argv", ["ehrctx", *[str(w) for w in words]])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return command


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
    assert "the column 'time' is String, expected a date-time" in said
    assert not (tmp_path / "splits.parquet").exists()


def test_unsorted_subject_is_named_by_row_and_not_by_id(run, data, tmp_path):
    later_first = pl.Series([1_000_000, 0]).cast(pl.Datetime("us"))
    folder = data(frame(time=later_first))
    pl.DataFrame({"subject_id": [987654321], "split": ["train"]}).write_parquet(tmp_path / "splits.parquet")
    out = tmp_path / "timelines"
    code, _, said = run("tokenize", folder, "--splits", tmp_path / "splits.parquet", "--out", out)
    assert code == 2
    assert "data/0.parquet, row 2: time goes back" in said
    assert "987654321" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["meds", "splits.parquet"]


def test_empty_split(run, data, tmp_path):
    code, _, said = run("split", data(frame()), "--splits", "{hash: [.5, .2, .3]}", "--out", tmp_path / "s.parquet")
    assert code == 2
    assert "is empty" in said


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


def test_a_valid_data_set_is_summarised(run, cohort, tmp_path):
    code, out, _ = run("check", cohort.events, "--out", tmp_path / "summary.json")
    assert code == 0
    assert '"subjects": 300' in out
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ehrctx.cli", ("torch", "polars", "numpy", "mlflow", "transformers")),
        ("ehrctx.pretrain.run", ("polars", "mlflow", "snakemake", "femr", "sklearn")),
        ("ehrctx.timelines.store", ("polars", "torch", "mlflow")),
    ],
)
def test_imports_stay_light(module, unwanted):
    # a GPU node may hold nothing but what training needs, and `ehrctx --help` answers at once
    script = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
