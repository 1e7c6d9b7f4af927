# Scores with intervals, the page, the executed notebook.
rule score:
    input:
        tracked=rules.tracking_store.output,
        predictions=[*expand(rules.probe.output, model=STUDY.models), *rules.probe_counts.output],
        models=expand(rules.pretrain.output, model=STUDY.models),
        labels=rules.label.output,
        splits=SPLITS,
    output:
        expand(f"{RESULTS}/report/{{table}}.csv", table=["scores", "differences", "labels", "models"]),
        f"{RESULTS}/report/provenance.json",
    params:
        folder=f"{RESULTS}/report",
        settings=STUDY.section("statistics"),
        privacy=STUDY.section("privacy"),
        store=TRACKING,
        experiment=STUDY.name,
        predictions=lambda _, input: [f"--predictions {p}" for p in input.predictions],
        models=lambda _, input: [f"--model {m}" for m in input.models],
    shell:
        "ehrctx score {params.predictions} {params.models} --labels {input.labels} --splits {input.splits} "
        "--settings {params.settings:q} --privacy {params.privacy:q} --out {params.folder} "
        "--tracking {params.store} --experiment {params.experiment}"


rule report:
    input:
        tables=rules.score.output,
        models=expand(rules.pretrain.output, model=STUDY.models),
        timelines=TIMELINES,
        summary=rules.check.output,
    output:
        f"{RESULTS}/report/index.html",
    params:
        folder=f"{RESULTS}/report",
        study=STUDY.model_dump_json(),
        models=lambda _, input: [f"--model {m}" for m in input.models],
    shell:
        "ehrctx report --tables {params.folder} {params.models} --timelines {input.timelines} "
        "--summary {input.summary} --study {params.study:q} --out {output}"


rule notebook:
    input:
        rules.score.output,
        notebook="notebooks/overview.ipynb",
    output:
        notebook=f"{RESULTS}/report/overview.ipynb",
        page=f"{RESULTS}/report/overview.html",
    params:
        folder=f"{RESULTS}/report",
    shell:
        "papermill --log-level WARNING --no-progress-bar -p tables {params.folder} {input.notebook} {output.notebook} && "
        "jupyter nbconvert --log-level WARN --no-input --to html {output.notebook}"
