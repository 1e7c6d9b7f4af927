"""Kills a running study at every stage, edits the study or not, runs it again, and compares with an undisturbed run.

    python tests/faults/kill.py [--only TEXT] [--sample N] [--seed N]

Each fault begins with a finished study, or with nothing. Half of them edit the study before the run that is disturbed,
some edit it back afterwards. What is compared, byte for byte but for columns of times: tables, predictions, embeddings,
labels, timelines and weights. It prints a line per fault, and ends with 1 if one differs. About a minute each.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "pipelines", "tokenizers", "notebooks", "profiles")
SNAKEMAKE = [str(Path(sys.executable).parent / "snakemake"), "--cores", "2", "--configfile", "study.yaml"]
MODEL = "gpt-tiny-32"
STUDY: dict[str, Any] = {
    "name": "faults",
    "simulate": {"preset": "planted", "subjects": 80, "seed": 1},
    "tokenizer": "clmbr_4k",
    "models": [MODEL],
    "tasks": ["guo_los", "lab_hyponatremia"],
    "labels": {"max_times_per_subject": 1},
    "pretraining": {
        "tokens": 24_000, "tokens_per_step": 400, "batch_tokens": 400, "validations": 2, "threads": 1,
        "checkpoint_seconds": 0.2,
    },
    "probe": {"baselines": ["logistic_regression"], "regularization": [0.01, 1.0]},
    "statistics": {"replicates": 50},
    "privacy": {"minimum_count": 1},
}  # fmt: skip
# An edit for each stage: it makes the stage run, and all that depends on it.
EDITS: dict[str, dict[str, Any]] = {
    "simulate": {"simulate": {"seed": 2}},
    "check": {"simulate": {"seed": 2}},
    "split": {"splits": {"hash": [0.5, 0.2, 0.3]}},
    "tokenize": {"splits": {"hash": [0.5, 0.2, 0.3]}},
    "label": {"labels": {"max_times_per_subject": 2}},
    "pretrain": {"pretraining": {"tokens": 30_000}},
    "embed": {"embedding": {"pooling": "mean"}},
    "probe": {"probe": {"max_iterations": 300}},
    "groups": {"labels": {"max_times_per_subject": 2}},
    "properties": {"labels": {"max_times_per_subject": 2}},
    "perplexity": {"perplexity": {"stride": 4}},
    "score": {"statistics": {"replicates": 60}},
    "robustness": {"statistics": {"replicates": 60}},
    "report": {"privacy": {"minimum_count": 3}},
}
TIMES = ("seconds", "tokens_per_second")
COMPARED = (".csv", ".parquet", ".npy", ".safetensors")
PATIENCE = 240  # seconds until a stage must have begun


@dataclass(frozen=True)
class Fault:
    """What happens while `stage` runs."""

    stage: str
    how: str  # of HOW
    edited: bool = False  # the study, before the run that is disturbed
    back: bool = False  # the study is edited back before the last run
    moment: str = "begun"  # begun, or for a training: saved (its first checkpoint is), late

    def __str__(self) -> str:
        edits = ", edited" * self.edited + " and edited back" * self.back
        return f"{self.stage} ({self.moment}): {self.how}{edits}"


def changed(study: dict[str, Any], edit: dict[str, Any]) -> dict[str, Any]:
    merged = {key: study[key] | value if isinstance(study.get(key), dict) else value for key, value in edit.items()}
    return study | merged


def clone(folder: Path) -> Path:
    """A folder that runs the repository's workflow and keeps its results to itself."""
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / part).symlink_to(REPOSITORY / part)
    return folder


def write_study(folder: Path, study: dict[str, Any]) -> None:
    (folder / "study.yaml").write_text(yaml.safe_dump(study))


def run(folder: Path) -> None:
    """Runs the study in `folder` to its end."""
    done = subprocess.run(SNAKEMAKE, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the study in {folder} does not end:\n{done.stderr[-3_000:]}")


def processes(folder: Path, verb: str) -> list[int]:
    """The processes of `ehrctx <verb>` that work in `folder`."""
    running = []
    for place in Path("/proc").iterdir():
        try:
            words = (place / "cmdline").read_bytes().decode().split("\0")
            inside = (place / "cwd").resolve() == folder.resolve()
        except (OSError, UnicodeDecodeError):
            continue
        called = [i for i, word in enumerate(words[:3]) if word.endswith("/ehrctx") or word == "ehrctx"]
        if inside and called and words[called[0] + 1 : called[0] + 2] == [verb]:
            running.append(int(place.name))
    return running


def await_moment(workflow: subprocess.Popen, folder: Path, fault: Fault) -> list[int]:
    """The processes of the stage, when the moment has come; none if the workflow ended before."""
    checkpoint = folder / f"results/faults/checkpoints/{MODEL}/last.ckpt"
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and workflow.poll() is None:
        if running := processes(folder, fault.stage):
            if fault.moment == "begun":
                time.sleep(random.random())
                return running
            if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                time.sleep(3 if fault.moment == "late" else 0)
                return running
        time.sleep(0.02)
    return []


def kill_job(workflow: subprocess.Popen, jobs: list[int]) -> None:
    for job in jobs:
        os.kill(job, signal.SIGKILL)


def signal_all(number: signal.Signals) -> Callable[[subprocess.Popen, list[int]], None]:
    return lambda workflow, _: os.killpg(workflow.pid, number)


HOW: dict[str, Callable[[subprocess.Popen, list[int]], None]] = {
    "SIGKILL of the job": kill_job,
    "SIGKILL of all": signal_all(signal.SIGKILL),
    "SIGINT of all": signal_all(signal.SIGINT),
    "SIGTERM of all": signal_all(signal.SIGTERM),
    "SIGKILL of Snakemake": lambda workflow, _: os.kill(workflow.pid, signal.SIGKILL),
}


def disturb(folder: Path, fault: Fault) -> bool:
    """Runs the study and disturbs it; whether the moment came."""
    workflow = subprocess.Popen(
        SNAKEMAKE, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    jobs = await_moment(workflow, folder, fault)
    if jobs:
        HOW[fault.how](workflow, [job for job in jobs if Path(f"/proc/{job}").exists()])
    workflow.wait()
    while "Snakemake" not in fault.how and processes(folder, fault.stage):  # what was asked to end may take a moment
        time.sleep(0.05)
    return bool(jobs)


def content(file: Path) -> object:
    if file.suffix == ".csv":
        table = pl.read_csv(file, infer_schema=False)
        return table.drop([name for name in TIMES if name in table.columns]).to_dict(as_series=False)
    if file.suffix == ".parquet":
        return pl.read_parquet(file).to_dict(as_series=False)
    return file.read_bytes()


def results(folder: Path) -> dict[str, Path]:
    """The files that are compared, by their path below the results."""
    root = folder / "results" / "faults"
    files = (path for path in sorted(root.rglob("*")) if path.suffix in COMPARED and path.is_file())
    return {path.relative_to(root).as_posix(): path for path in files if "checkpoints" not in path.parts}


def differing(one: Path, other: Path) -> list[str]:
    """The files of results that differ, or are in one of the two folders alone."""
    first, second = results(one), results(other)
    same = {name for name in first.keys() & second.keys() if repr(content(first[name])) == repr(content(second[name]))}
    return sorted((first.keys() | second.keys()) - same)


def faults() -> list[Fault]:
    """Each stage killed alone, with the study edited and not; training at three moments; all, by each signal."""
    listed = [Fault("pretrain", how, edited, False, moment) for how in HOW for edited in (False, True)
              for moment in ("begun", "saved", "late")]  # fmt: skip
    listed += [Fault("pretrain", "SIGKILL of the job", True, True, moment) for moment in ("begun", "saved", "late")]
    others = [stage for stage in EDITS if stage != "pretrain"]
    for number, stage in enumerate(others):
        how = list(HOW)[number % len(HOW)]
        listed += [Fault(stage, "SIGKILL of the job", True, back=number % 2 == 0), Fault(stage, how, False)]
    return listed


def undisturbed(study: dict[str, Any], folder: Path, known: dict[str, Path]) -> Path:
    """The folder of a run of `study` that nothing disturbed; made once for each study."""
    key = yaml.safe_dump(study)
    if key not in known:
        known[key] = clone(folder / f"undisturbed-{len(known)}")
        write_study(known[key], study)
        run(known[key])
    return known[key]


def outcome(fault: Fault, folder: Path, known: dict[str, Path]) -> str:
    """What became of it: 'identical', or what differs."""
    finished = undisturbed(STUDY, folder, known)
    edited = changed(STUDY, EDITS[fault.stage]) if fault.edited else STUDY
    last = STUDY if fault.back else edited
    place = folder / "disturbed"
    shutil.rmtree(place, ignore_errors=True)
    if fault.edited:  # a finished study, edited
        shutil.copytree(finished, place, symlinks=True)
    else:
        clone(place)
    write_study(place, edited)
    if not disturb(place, fault):
        return "the moment never came"
    write_study(place, last)
    run(place)
    wrong = differing(undisturbed(last, folder, known), place)
    return f"differs: {', '.join(wrong)}" if wrong else "identical"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="faults whose line contains this text")
    parser.add_argument("--sample", type=int, help="so many of them, drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of the sample")
    chosen = parser.parse_args()
    random.seed(chosen.seed)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="ehrctx-faults-") as folder:
        known: dict[str, Path] = {}
        listed = [fault for fault in faults() if chosen.only in str(fault)]
        for fault in random.sample(listed, min(chosen.sample or len(listed), len(listed))):
            said = outcome(fault, Path(folder), known)
            bad += said != "identical"
            print(f"{fault}: {said}", flush=True)
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
