# Scores with intervals, the page, the executed notebooks.
SCORED = [
    "scores", "differences", "wins", "few_shot", "calibration", "reliability", "net_benefit", "subgroups", "labels",
    "models", "curves",
]
NOTEBOOKS = ["overview", "copy_forwarding", "irregular_intervals", "disease_progression"]


rule score:
    input:
        tracked=rules.tracking_store.output,
        predictions=PREDICTIONS,
        models=expand(rules.pretrain.output, model=STUDY.models),
        labels=rules.label.output,
        groups=rules.groups.output,
        splits=SPLITS,
        study=WHOLE_STUDY,
    output:
        expand(f"{RESULTS}/report/{{table}}.csv", table=SCORED),
        f"{RESULTS}/report/provenance.json",
    params:
        folder=f"{RESULTS}/report",
        settings=lambda _: STUDY.section("statistics"),
        privacy=lambda _: STUDY.section("privacy"),
        store=TRACKING,
        experiment=STUDY.name,
        predictions=lambda _, input: [f"--predictions {p}" for p in input.predictions],
        models=lambda _, input: [f"--model {m}" for m in input.models],
    shell:
        "ehrctx score {params.predictions} {params.models} --labels {input.labels} --groups {input.groups} "
        "--splits {input.splits} --study {input.study} "
        "--settings {params.settings:q} --privacy {params.privacy:q} --out {params.folder} "
        "--tracking {params.store} --experiment {params.experiment}"


rule report:
    input:
        rules.score.output,
        rules.robustness.output,
        timelines=TIMELINES,
        summary=rules.check.output,
        study=WHOLE_STUDY,
    output:
        f"{RESULTS}/report/index.html",
        f"{RESULTS}/report/page.json",
    params:
        folder=f"{RESULTS}/report",
        study=lambda _: STUDY.model_dump_json(),  # the page shows the whole study
    shell:
        "ehrctx report --tables {params.folder} --timelines {input.timelines:q} "
        "--summary {input.summary} --study {input.study} --out {output[0]}"


rule notebook:
    input:
        rules.score.output,
        rules.robustness.output,
        notebook="notebooks/{notebook}.ipynb",
    output:
        notebook=f"{RESULTS}/report/{{notebook}}.ipynb",
        page=f"{RESULTS}/report/{{notebook}}.html",
    params:
        folder=f"{RESULTS}/report",
    retries: 1  # kernels that start at once may choose the same port
    wildcard_constraints:
        notebook="|".join(NOTEBOOKS),
    shell:
        "papermill --log-level WARNING --no-progress-bar -p tables {params.folder} {input.notebook} {output.notebook} && "
        "jupyter nbconvert --log-level WARN --no-input --to html {output.notebook}"
