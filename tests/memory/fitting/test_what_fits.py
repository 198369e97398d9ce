"""What of a model's runs fits where, by runs that are confirmed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu, read_gpus
from moetool.errors import UsageError
from moetool.memory.fitting.what_fits import (
    find_limits_on,
    list_fits_everywhere,
    list_fits_on,
    list_ranks,
    quantize_scenario,
)
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.quantized.kinds import Quantization
from tests.memory.saved_configs import make_runs, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=2, dtype="float32")
GPTQ = {"quant_method": "gptq", "bits": 4}


@pytest.fixture
def runs(tmp_path: Path) -> ModelRuns:
    """A tiny model's runs, whose context is long."""
    return make_runs(save_config("olmoe", tmp_path, max_position_embeddings=2**20))


def count_bytes(runs: ModelRuns, scenario: Scenario) -> int:
    total_bytes = runs.run(scenario).figures.total_device_bytes
    assert total_bytes is not None
    return total_bytes


def test_the_limits_fit_and_what_is_larger_does_not(runs: ModelRuns) -> None:
    gpu = find_gpu("1GiB")
    limits = find_limits_on(runs, SCENARIO, gpu)
    prompt, batch = limits.largest_prompt_tokens, limits.largest_batch_size
    longer = prompt + max(64, prompt // 100)
    for size, fits in ((prompt, True), (longer, False)):
        sized = replace(SCENARIO, num_prompt_tokens=size)
        assert (runs.run_within(sized, gpu.memory_bytes) is not None) == fits
    for size, fits in ((batch, True), (batch + 1, False)):
        sized = replace(SCENARIO, batch_size=size)
        assert (runs.run_within(sized, gpu.memory_bytes) is not None) == fits
    # It would take more where there is more, and runs through all the same.
    assert count_bytes(runs, replace(SCENARIO, batch_size=batch)) > gpu.memory_bytes
    assert not limits.is_whole_context
    assert limits.gpu == gpu.id


def test_new_tokens_take_room_in_the_context(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path, max_position_embeddings=50))
    limits = find_limits_on(runs, SCENARIO, find_gpu("h200"))
    assert (limits.largest_prompt_tokens, limits.is_whole_context) == (48, True)


def test_no_more_tokens_are_tried_at_once_than_can_be_simulated(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    limits = find_limits_on(runs, replace(SCENARIO, num_prompt_tokens=62), find_gpu("h200"))
    assert limits.largest_batch_size == 2**22 // 64


def test_on_a_named_gpu_every_quantization_is_looked_at(runs: ModelRuns) -> None:
    gpu = find_gpu("1GiB")
    fits = list_fits_on(runs, SCENARIO, gpu)
    kinds = [Quantization.NONE, Quantization.INT8, Quantization.NF4]
    assert [fit.quantization for fit in fits] == kinds
    for fit in fits:
        total_bytes = count_bytes(runs, quantize_scenario(SCENARIO, fit.quantization))
        assert fit.headroom_bytes == gpu.memory_bytes - total_bytes
        assert (fit.gpu, fit.fits, fit.num_gpus) == (gpu.id, True, 1)


def test_the_quantization_that_is_run_is_looked_at_once(runs: ModelRuns) -> None:
    fp4 = replace(SCENARIO, quantization=Quantization.FP4, is_double_quantized=True)
    for asked, number in ((fp4, 4), (replace(fp4, quantization=Quantization.NF4), 3)):
        fits = list_fits_on(runs, asked, find_gpu("h200"))
        assert len(fits) == number
        assert asked.quantization in {fit.quantization for fit in fits}


def test_how_many_of_all_gpus_it_takes_is_told_as_it_is_run() -> None:
    runs = make_runs("mixtral-8x7b")
    scenario = Scenario(num_prompt_tokens=64, num_new_tokens=2, dtype="bfloat16")
    fits = list_fits_everywhere(runs, scenario)
    assert {fit.gpu for fit in fits} == set(read_gpus())
    assert len(fits) == 3 * len(read_gpus())
    for fit in fits:
        if fit.fits:
            assert fit.num_gpus == 1
        elif fit.quantization is not Quantization.NONE:
            assert fit.num_gpus is None
    by_gpu = {fit.gpu: fit for fit in fits if fit.quantization is Quantization.NONE}
    # Of 24 GiB, context, activations and cache leave room for 7 of 32 layers.
    assert by_gpu["rtx-4090"].num_gpus == 5
    assert by_gpu["h200"].num_gpus == 1


def test_a_quantization_that_is_not_possible_is_unknown(tmp_path: Path) -> None:
    path = save_config("olmoe", tmp_path, dtype="float16", quantization_config=GPTQ)
    auto = replace(SCENARIO, dtype="auto")
    own, *others = list_fits_on(make_runs(path), auto, find_gpu("h200"))
    # Nor is anything known of it as it is, without its files.
    assert {(fit.fits, fit.headroom_bytes, fit.num_gpus) for fit in (own, *others)} == {
        (None, None, None)
    }
    with pytest.raises(UsageError, match="quantized already"):
        list_fits_on(
            make_runs(path), replace(auto, quantization=Quantization.NF4), find_gpu("h200")
        )


def test_only_4_bit_weights_keep_scales_that_are_quantized() -> None:
    double = replace(SCENARIO, quantization=Quantization.NF4, is_double_quantized=True)
    for quantization, is_double in (
        (Quantization.NONE, False),
        (Quantization.INT8, False),
        (Quantization.FP4, True),
        (Quantization.NF4, True),
    ):
        changed = quantize_scenario(double, quantization)
        expected = replace(double, quantization=quantization, is_double_quantized=is_double)
        assert changed == expected
    assert quantize_scenario(SCENARIO, Quantization.NF4).is_double_quantized is False


def test_ranks_are_told_by_map_and_by_two_kinds_of_parallelism(runs: ModelRuns) -> None:
    ranks = list_ranks(runs, SCENARIO, find_gpu("h200"), num_gpus=None)
    assert [(each.way, each.num_gpus) for each in ranks] == [
        ("device_map", 1),
        *((way, number) for way in ("tensor_parallel", "expert_parallel") for number in (2, 4, 8)),
    ]
    weights_bytes = runs.run(SCENARIO).figures.weights_bytes
    assert sum(ranks[0].weights_bytes) == pytest.approx(weights_bytes, rel=0.01)
    assert ranks[0].num_layers == (4,)
