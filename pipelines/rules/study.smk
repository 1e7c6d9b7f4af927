# The study: validated before any job runs, and held by one run at a time.
import fcntl
import json
import os
import sys
from pathlib import Path
from shlex import quote

from ehrctx.configuration import read_yaml, validate
from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.events.ontology import athena_files
from ehrctx.events.profile import find_profile
from ehrctx.events.simulate.parameters import find_preset, parameters_of
from ehrctx.events.sources import source_files
from ehrctx.pretrain.trained import check_starts
from ehrctx.probe.few_shot import shot_files
from ehrctx.study import ModelId, Study
from ehrctx.tasks.definition import load_definitions
from ehrctx.tasks.imports import watched_files
from ehrctx.timelines.spec import find_spec

# Jobs find this environment's commands, whether or not it was activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

# Threads that spin while they wait make parallel jobs many times slower where cores are few (Snakemake runs jobs side by side).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    if not config:
        raise InputError("no study given. Add --configfile pipelines/studies/demo.yaml, or your own study file.")
    for file in workflow.configfiles:
        read_yaml(file)  # refuses a key given twice, of which Snakemake took the last one
    STUDY = validate(Study, config, "study")
    check_starts(STUDY)
    PROFILE = str(find_profile(STUDY.profile))
    TOKENIZER = str(find_spec(STUDY.tokenizer))
    TASKS = load_definitions(STUDY.tasks)
    # A MEDS data set is used in place; without one, another format is imported, or the cohort simulated.
    RESULTS = f"results/{STUDY.name}"
    DATA = STUDY.data or f"{RESULTS}/events/meds"
    if STUDY.simulate:
        PRESET = str(find_preset(STUDY.simulate.preset))
        parameters_of(PRESET, STUDY.simulate.parameters, "study: simulate.parameters")  # refused before anything runs
    SOURCE = [str(file) for file in source_files(STUDY.source)] if STUDY.source else []
    GIVEN = [str(file) for file in watched_files(TASKS, STUDY.labels.given)]
    DRAWN = STUDY.probe.few_shot.shots if STUDY.probe.few_shot else None
    SHOTS = [str(file) for file in shot_files(Path(DRAWN), [task.task for task in TASKS]).values()] if DRAWN else []
    ONTOLOGY = [str(file) for file in athena_files(Path(STUDY.ontology)).values()] if STUDY.ontology else []
    EVENTS = [str(file) for file in open_dataset(Path(DATA)).files()] if STUDY.data else DATA
except InputError as error:
    raise WorkflowError(str(error)) from None

# One part of a data set is about 4 GiB of parquet, some 300 million events.
PARTS_BY_SIZE = 1 + sum(os.path.getsize(file) for file in EVENTS) // 2**32 if STUDY.data else 1
TIMELINES = f"{RESULTS}/timelines/{Path(TOKENIZER).stem}"
SPLITS = f"{RESULTS}/events/subject_splits.parquet"
TRACKING = "results/mlflow.db"
# Jobs before the trainings go first: of several studies side by side (the controls), those that want all cores would starve.
EARLY = 2


wildcard_constraints:
    model="|".join(STUDY.models),


onstart:
    # Snakemake's own lock outlives a killed run (the profile switches it off); the kernel drops this one with its holder.
    Path(RESULTS).mkdir(parents=True, exist_ok=True)
    globals()["HELD"] = open(f"{RESULTS}/.lock", "w")
    try:
        fcntl.flock(HELD, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"another run of the study {STUDY.name!r} is going on. Wait for it, or stop it.") from None
