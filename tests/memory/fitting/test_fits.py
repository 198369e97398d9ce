"""GPUs on which a scenario fits, by runs that are confirmed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu, read_gpus
from moetool.errors import UsageError
from moetool.memory.fitting.fits import list_fits_everywhere, list_fits_on
from moetool.memory.scenario import Scenario
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.quantizing.kinds import Quantization
from tests.memory.saved_configs import make_runs, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=2, dtype="float32")
GPTQ = {"quant_method": "gptq", "bits": 4}
KINDS = [Quantization.NONE, Quantization.INT8, Quantization.NF4]


@pytest.fixture
def runs(tmp_path: Path) -> ModelRuns:
    """A tiny model's runs, whose context is long."""
    return make_runs(save_config("olmoe", tmp_path, max_position_embeddings=2**20))


def count_bytes(runs: ModelRuns, scenario: Scenario) -> int:
    return runs.simulate(scenario).figures.total_device_bytes


def test_on_a_named_gpu_every_quantization_is_looked_at(runs: ModelRuns) -> None:
    gpu = find_gpu("1GiB")
    fits = list_fits_on(runs, SCENARIO, gpu)
    assert [fit.quantization for fit in fits] == KINDS
    for fit in fits:
        total_bytes = count_bytes(runs, SCENARIO.quantized(fit.quantization))
        assert fit.headroom_bytes == gpu.memory_bytes - total_bytes
        assert (fit.gpu, fit.fits, fit.num_gpus) == (gpu.id, True, 1)


def test_the_last_byte_fits(runs: ModelRuns) -> None:
    total_bytes = count_bytes(runs, SCENARIO)
    exactly, over = (
        list_fits_on(runs, SCENARIO, find_gpu(f"{memory_bytes}B"), quantizations=())[0]
        for memory_bytes in (total_bytes, total_bytes - 1)
    )
    assert (exactly.fits, exactly.headroom_bytes, exactly.num_gpus) == (True, 0, 1)
    assert (over.fits, over.headroom_bytes) == (False, -1)


def test_what_completes_in_less_than_it_would_take_fits(runs: ModelRuns) -> None:
    wide = replace(SCENARIO, batch_size=512, num_prompt_tokens=64, num_new_tokens=6)
    total_bytes = count_bytes(runs, wide)
    (own, *_) = list_fits_on(runs, wide, find_gpu(f"{total_bytes - 1}B"), quantizations=())
    limited = runs.run_within(wide, total_bytes - 1)
    assert limited is not None
    assert own.fits
    assert own.headroom_bytes == total_bytes - 1 - limited.figures.total_device_bytes


def test_quantizations_that_are_not_simulated_are_unknown(runs: ModelRuns) -> None:
    own, *others = list_fits_on(runs, SCENARIO, find_gpu("1GiB"), quantizations=())
    assert own.fits
    assert [other.quantization for other in others] == KINDS[1:]
    assert {(each.fits, each.headroom_bytes, each.num_gpus) for each in others} == {
        (None, None, None)
    }


def test_the_quantization_that_is_run_is_looked_at_once(runs: ModelRuns) -> None:
    fp4 = replace(SCENARIO, quantization=Quantization.FP4, is_double_quantized=True)
    for asked, number in ((fp4, 4), (replace(fp4, quantization=Quantization.NF4), 3)):
        fits = list_fits_on(runs, asked, find_gpu("h200"))
        assert len(fits) == number
        assert asked.quantization in {fit.quantization for fit in fits}


def test_the_number_of_gpus_is_counted_as_it_is_run() -> None:
    runs = make_runs("mixtral-8x7b")
    scenario = Scenario(num_prompt_tokens=64, num_new_tokens=2, dtype="bfloat16")
    fits = list_fits_everywhere(runs, scenario)
    assert {fit.gpu for fit in fits} == set(read_gpus())
    assert len(fits) == 3 * len(read_gpus())
    order = [(fit.memory_bytes, fit.gpu) for fit in fits]
    assert order == sorted(order)
    assert [fit.quantization for fit in fits[:6]] == [*KINDS, *KINDS]
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
    # Without its files, nothing is known of it as it is either.
    assert {(fit.fits, fit.headroom_bytes, fit.num_gpus) for fit in (own, *others)} == {
        (None, None, None)
    }
    with pytest.raises(UsageError, match="quantized already"):
        list_fits_on(
            make_runs(path), replace(auto, quantization=Quantization.NF4), find_gpu("h200")
        )
