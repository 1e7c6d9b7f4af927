# The controls: each arm is the whole workflow with a study of its own, of which only what is compared is run.
import os
import sys
from pathlib import Path

from ehrctx.artifacts import Fingerprints, begin_run, try_lock
from ehrctx.configuration import read_yaml, validate
from ehrctx.controls.arms import Controls, compared
from ehrctx.controls.tables import PROVENANCE, compared_inputs
from ehrctx.errors import InputError
from ehrctx.provenance import LOCK, Expected, mark, needed_for, reasons_against, results_of

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

try:
    for file in workflow.configfiles:
        read_yaml(file)  # refuses a key given twice, of which Snakemake took the last one
    CONTROLS = validate(Controls, config, "controls")
    STUDIES = CONTROLS.studies()
except InputError as error:
    raise WorkflowError(str(error)) from None

OUT = f"results/{CONTROLS.name}/report"
COMPARED = []
for arm, STUDY in STUDIES.items():
    ARM = f"{arm}_"

    module:
        name:
            ARM
        snakefile:
            "../../Snakefile"
        config:
            STUDY.model_dump(mode="json")

    use rule * from ARM exclude all as ARM*

    # with all that it is made from: an intermediate result that is missing is made again
    COMPARED += map(str, needed_for(STUDY, compared(arm, STUDY, results_of(STUDY))))


PAGES = [f"{OUT}/{file}" for file in ("index.html", "controls.csv", PROVENANCE)]
if workflow.is_main_process and Path(OUT, PROVENANCE).is_file():
    FOLDERS = {arm: results_of(study) for arm, study in STUDIES.items()}
    ASKED = Expected(CONTROLS.model_dump(mode="json"), compared_inputs(CONTROLS, FOLDERS))
    REASONS = reasons_against(Path(OUT, PROVENANCE), ASKED, Fingerprints(Path(OUT, ".fingerprints.json")))
    mark(map(Path, PAGES), list(map(Path, PAGES)) if REASONS else [])


onstart:
    globals()["HELD"] = [try_lock(results_of(study) / LOCK) for study in STUDIES.values()]
    if None in HELD:
        raise WorkflowError(f"another run of the controls {CONTROLS.name!r} is going on. Wait for it, or stop it.")
    for lock in HELD:
        begin_run(lock)


rule controls:
    input:
        COMPARED,
    output:
        PAGES,
    params:
        design=lambda _: CONTROLS.model_dump_json(),
        folder=OUT,
    shell:
        "ehrctx controls --design {params.design:q} --results results --out {params.folder}"
