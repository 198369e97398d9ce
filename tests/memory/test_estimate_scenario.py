"""Estimates of single scenarios: variants, unknown weights, and too much work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.memory.answers.figures import MemoryFigures, Method
from moetool.memory.estimate_scenario import estimate_scenario
from moetool.memory.result import Estimate
from moetool.memory.scenario import CacheKind, Scenario
from moetool.quantizing.kinds import Quantization
from tests.memory.saved_configs import make_loader, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=6, dtype="float32")
GPTQ = {"quant_method": "gptq", "bits": 4}


def estimate(path: str, scenario: Scenario, *, most_work: int, gpu: str | None) -> Estimate:
    loader = make_loader(path, gpu=gpu or "h200")
    named_gpu = None if gpu is None else find_gpu(gpu)
    return estimate_scenario(loader, scenario, named_gpu=named_gpu, trace=None, most_work=most_work)


def test_without_files_weights_that_another_library_lays_out_are_unknown(tmp_path: Path) -> None:
    path = save_config("olmoe", tmp_path, dtype="float16", quantization_config=GPTQ)
    auto = replace(SCENARIO, dtype="auto")
    shown = estimate(path, auto, most_work=10**6, gpu=None)
    (tmp_path / "plain").mkdir()
    plain_path = save_config("olmoe", tmp_path / "plain", dtype="float16")
    plain = estimate(plain_path, auto, most_work=10**6, gpu=None)
    assert (shown.method, plain.method) == (Method.APPROXIMATE, Method.SIMULATED)
    assert shown.figures == MemoryFigures(None, plain.figures.cache_bytes, None, None, None)
    assert [peak.above_weights_bytes for peak in shown.peaks] == [
        peak.above_weights_bytes for peak in plain.peaks
    ]
    assert {peak.allocated_bytes for peak in shown.peaks} == {None}
    assert any("So are all figures that include them." in note for note in shown.notes)
    assert shown.variants == {"dequantized": plain.figures}


@pytest.mark.parametrize("gpu", ["750MiB", None])
def test_what_is_too_much_work_is_unknown_and_the_answer_itself_comes(
    gpu: str | None, tmp_path: Path
) -> None:
    path = save_config("olmoe", tmp_path)
    within, beyond = (
        estimate(path, SCENARIO, most_work=most_work, gpu=gpu) for most_work in (10**6, 1)
    )
    assert beyond.figures.weights_bytes == within.figures.weights_bytes
    assert beyond.figures.cache_bytes == within.figures.cache_bytes
    assert [fit.fits for fit in within.fits if fit.quantization is Quantization.INT8][-1]
    for fit in beyond.fits:
        if fit.quantization is Quantization.NONE:
            assert fit.fits is not None
        else:
            assert (fit.fits, fit.headroom_bytes, fit.num_gpus) == (None, None, None)
    unknown = [note for note in beyond.notes if "more passes through the model" in note]
    assert unknown[0].startswith("Whether it fits with the quantization int8 or nf4 is unknown")
    if gpu is not None:
        assert within.limits is not None
        assert beyond.limits is None
        assert unknown[1].startswith("The longest prompt and the largest batch")
        assert beyond.speed == within.speed
        assert beyond.offload is not None
    else:
        assert unknown[1].startswith("The number of GPUs that it needs")
        assert {fit.num_gpus for fit in beyond.fits if not fit.fits} <= {None}
    assert len(unknown) == 2
    assert not any("more passes" in note for note in within.notes)


def test_of_many_steps_of_a_model_with_many_modules_the_ends_run(tmp_path: Path) -> None:
    path = save_config("olmoe", tmp_path)
    scenario = replace(SCENARIO, num_new_tokens=40)
    within, beyond = (
        estimate(path, scenario, most_work=most_work, gpu=None) for most_work in (10**6, 1)
    )
    words = "only the first and the last of 40 steps were simulated"
    assert any(words in note for note in beyond.notes)
    assert not any(words in note for note in within.notes)
    assert beyond.figures.cache_bytes == within.figures.cache_bytes


def test_a_variant_that_is_too_much_work_is_unknown(tmp_path: Path) -> None:
    path = save_config("olmoe", tmp_path)
    nf4 = replace(SCENARIO, quantization=Quantization.NF4)
    within, beyond = (
        estimate(path, nf4, most_work=most_work, gpu=None) for most_work in (10**6, 1)
    )
    assert set(within.variants) == {"transformers", "experts_quantized"}
    assert set(beyond.variants) == {"transformers"}
    assert any(
        note.startswith("The memory of the variant experts_quantized is unknown")
        for note in beyond.notes
    )


def test_no_note_says_that_steps_were_left_out_where_a_static_cache_needs_none(
    tmp_path: Path,
) -> None:
    path = save_config("olmoe", tmp_path)
    scenario = replace(SCENARIO, num_new_tokens=20, cache=CacheKind.STATIC)
    large, small = (
        estimate(path, scenario, most_work=most_work, gpu=None) for most_work in (10**6, 1)
    )
    assert large.figures == small.figures
    assert not any("too many modules" in note for note in small.notes)
