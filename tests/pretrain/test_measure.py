"""A measurement of real steps, in a process of its own."""

from __future__ import annotations

import time

import pytest

from ehrctx.errors import InputError
from ehrctx.pretrain.measure import DOES_NOT_FIT, FEWEST, STEPS, measure, measure_here
from ehrctx.pretrain.plan import ACTIVATIONS
from ehrctx.study import Pretraining

SETTINGS = Pretraining(batch_tokens=512, threads=1, accelerator="cpu")


def test_twenty_steps_of_a_model_are_timed():
    began = time.perf_counter()
    found = measure_here("gpt-tiny-64", 100, SETTINGS, "cpu", patience=600)
    seconds = time.perf_counter() - began
    assert found.steps == STEPS
    assert found.fits
    # half of the steps at least took the median or longer, and all within the time that passed
    assert found.tokens_per_second > STEPS / 2 * 512 / seconds


def test_a_scan_that_this_machine_has_not_is_one_sentence():
    triton = SETTINGS.model_copy(update={"scan": "triton"})
    with pytest.raises(InputError, match=r"^pretraining\.scan: .*Leave it at 'auto', or choose another\.$"):
        measure("mamba-tiny-64", 100, triton, "cpu", limit_gib=4.0)


def test_who_has_no_patience_gets_fewer_steps():
    assert measure_here("gpt-tiny-64", 100, SETTINGS, "cpu", patience=0.0).steps == FEWEST


def test_a_longer_batch_takes_more_memory_and_too_long_a_one_harms_nobody():
    """Peaks of processes of their own; in the last, the embeddings of one batch alone are 4 GiB."""
    small, large, huge = (
        measure(
            "llama-tiny-64",
            100,
            SETTINGS.model_copy(update={"batch_tokens": n, "tokens_per_step": n}),
            "cpu",
            limit_gib=4.0,
            patience=0.0,
        )
        for n in (512, 16_384, 8_388_608)
    )
    assert small.fits
    assert large.fits
    kept = ACTIVATIONS["float32"]["llama"] * 4 * 128 * 4 * (16_384 - 512) / 2**30
    assert 0.8 * kept < large.memory_gib - small.memory_gib < 2.5 * kept, "what the backward keeps, and holds besides"
    assert huge == DOES_NOT_FIT
