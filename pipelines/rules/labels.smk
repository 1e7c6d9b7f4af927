# Label files of all tasks, in the MEDS label schema.
rule label:
    input:
        EVENTS,
        rules.check.output,
        GIVEN,
        ONTOLOGY,
        profile=PROFILE,
        study=WHOLE_STUDY,
    output:
        directory(f"{RESULTS}/labels"),
    params:
        data=DATA,
        tasks=lambda _: [f"--task {quote(task)}" for task in STUDY.tasks],
        # a changed definition re-labels; a function, since braces are no wildcards here
        definitions=lambda _: [task.model_dump_json() for task in TASKS],
        settings=lambda _: STUDY.section("labels"),
        ontology=lambda _: f"--ontology {quote(STUDY.ontology)}" if STUDY.ontology else "",
    shell:
        "ehrctx label {params.data:q} {params.tasks} --profile {input.profile:q} --settings {params.settings:q} "
        "{params.ontology} --out {output} --study {input.study}"
