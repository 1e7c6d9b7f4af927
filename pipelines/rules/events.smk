# Raw events: simulated or imported where the study asks for it, checked, split.
if STUDY.simulate:

    rule simulate:
        input:
            preset=PRESET,
        output:
            directory(f"{RESULTS}/events/meds"),
        params:
            subjects=STUDY.simulate.subjects,
            seed=STUDY.simulate.seed,
            parameters=json.dumps(STUDY.simulate.parameters, sort_keys=True),
        priority: EARLY
        threads: workflow.cores
        shell:
            "ehrctx simulate --subjects {params.subjects} --seed {params.seed} --preset {input.preset:q} "
            "--parameters {params.parameters:q} --workers {threads} --out {output}"


# Or imported from another format, by the verb of its name.
if STUDY.source:

    rule import_source:
        input:
            SOURCE,
        output:
            directory(f"{RESULTS}/events/meds"),
        params:
            format=STUDY.source.format,
            folder=STUDY.source.folder,
            options=STUDY.import_options(),
        priority: EARLY
        shell:
            "ehrctx import {params.format} {params.folder:q} {params.options} --out {output}"


rule check:
    input:
        EVENTS,
    output:
        f"{RESULTS}/events/summary.json",
    params:
        data=DATA,
    priority: EARLY
    shell:
        "ehrctx check {params.data:q} --out {output}"


rule split:
    input:
        EVENTS,
        rules.check.output,
    output:
        SPLITS,
    params:
        data=DATA,
        splits=STUDY.section("splits"),
    priority: EARLY
    shell:
        "ehrctx split {params.data:q} --splits {params.splits:q} --out {output}"
