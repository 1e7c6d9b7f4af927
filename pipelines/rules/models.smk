# One training job per model. The MLflow store is made once, before any of them opens it.
rule tracking_store:
    output:
        touch(f"{RESULTS}/models/.tracked"),
    params:
        store=TRACKING,
        experiment=STUDY.name,
    shell:
        "ehrctx track --store {params.store} --experiment {params.experiment}"


rule pretrain:
    input:
        rules.tracking_store.output,
        timelines=TIMELINES,
        study=WHOLE_STUDY,
        # another model of the study is trained first
        start=lambda wildcards: STUDY.start_of(wildcards.model, f"{RESULTS}/models") or [],
    output:
        directory(f"{RESULTS}/models/{{model}}"),
    params:
        # outside the declared output, which Snakemake deletes when it re-runs an interrupted job
        checkpoints=lambda wildcards: f"{RESULTS}/checkpoints/{wildcards.model}",
        settings=lambda wildcards: STUDY.section(
            "pretraining", without=STUDY.pretraining.without_effect(ModelId.parse(wildcards.model))
        ),
        start=lambda _, input: f"--from {quote(input.start)}" if input.start else "",
        store=TRACKING,
        experiment=STUDY.name,
    priority: 1  # the longest jobs first: the short ones fill the gaps at the end
    threads: STUDY.pretraining.threads * STUDY.pretraining.devices
    resources:
        # a changed resource re-runs nothing, and what is here changes nothing that is learned
        running=lambda wildcards, threads: STUDY.running(threads),
    shell:
        "ehrctx pretrain --timelines {input.timelines:q} --study {input.study} --model {wildcards.model} --out {output} "
        "--checkpoints {params.checkpoints} --settings {params.settings:q} {params.start} "
        "--running {resources.running:q} "
        "--tracking {params.store} --experiment {params.experiment}"
