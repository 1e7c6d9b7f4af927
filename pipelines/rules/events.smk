# Raw events: simulated or imported where the study asks for it, checked, split.
if STUDY.simulate:

    rule simulate:
        input:
            preset=PRESET,
        output:
            directory(MADE_EVENTS),
        params:
            subjects=STUDY.simulate.subjects,
            seed=STUDY.simulate.seed,
            parameters=lambda _: json.dumps(STUDY.simulate.parameters, sort_keys=True),
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
            study=WHOLE_STUDY,
        output:
            directory(MADE_EVENTS),
        params:
            format=STUDY.source.format,
            folder=STUDY.source.folder,
            options=lambda _: STUDY.import_options(),
        priority: EARLY
        shell:
            "ehrctx import {params.format} {params.folder:q} {params.options} --out {output} --study {input.study}"


rule check:
    input:
        EVENTS,
        profile=PROFILE,
        study=WHOLE_STUDY,
    output:
        f"{RESULTS}/events/summary.json",
    params:
        data=DATA,
    priority: EARLY
    shell:
        "ehrctx check {params.data:q} --profile {input.profile:q} --out {output} --study {input.study}"


rule split:
    input:
        EVENTS,
        rules.check.output,
        study=WHOLE_STUDY,
    output:
        SPLITS,
    params:
        data=DATA,
        splits=lambda _: STUDY.section("splits"),
    priority: EARLY
    shell:
        "ehrctx split {params.data:q} --splits {params.splits:q} --out {output} --study {input.study}"
