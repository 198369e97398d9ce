"""The largest scenarios that fit, confirmed by runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.errors import InputError
from moetool.memory.fitting.limits import NOTHING_FITS, find_limits
from moetool.memory.scenario import Scenario
from tests.memory.saved_configs import make_runs, save_config

SCENARIO = Scenario(batch_size=2, num_prompt_tokens=16, num_new_tokens=2, dtype="float32")
GPTQ = {"quant_method": "gptq", "bits": 4}


def test_the_limits_fit_and_what_is_larger_does_not(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path, max_position_embeddings=2**20))
    gpu = find_gpu("1GiB")
    limits, notes = find_limits(runs, SCENARIO, gpu)
    prompt, batch = limits.largest_prompt_tokens, limits.largest_batch_size
    longer = prompt + max(64, prompt // 100)
    for size, fits in ((prompt, True), (longer, False)):
        sized = replace(SCENARIO, num_prompt_tokens=size)
        assert (runs.run_within(sized, gpu.memory_bytes) is not None) == fits
    for size, fits in ((batch, True), (batch + 1, False)):
        sized = replace(SCENARIO, batch_size=size)
        assert (runs.run_within(sized, gpu.memory_bytes) is not None) == fits
    # It would take more where there is more, and completes all the same.
    in_full = runs.simulate(replace(SCENARIO, batch_size=batch))
    assert in_full.figures.total_device_bytes > gpu.memory_bytes
    assert not limits.is_whole_context
    assert notes == ()


def test_nothing_fits_where_the_weights_do_not_and_no_trial_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    figures = runs.simulate(SCENARIO).figures
    needed = figures.weights_bytes + figures.context_bytes
    gpu = find_gpu("1GiB")
    trial = replace(SCENARIO, batch_size=1, num_prompt_tokens=1)
    # Weights that fit leave it to trials, and so the smallest one doesn't fit in so little either.
    assert runs.run_within(trial, needed - 1) is None
    assert find_limits(runs, SCENARIO, replace(gpu, memory_bytes=needed)) == (NOTHING_FITS, ())
    monkeypatch.setattr(runs, "guess", None)
    assert find_limits(runs, SCENARIO, replace(gpu, memory_bytes=needed - 1)) == (NOTHING_FITS, ())


def test_a_run_begins_beyond_a_gpu_if_its_prompt_does_not_fit(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    scenario = replace(SCENARIO, num_new_tokens=8)
    needed = runs.simulate(scenario).figures.total_device_bytes
    # More sequences, so that the run has not been simulated already.
    larger = replace(scenario, batch_size=64)
    assert runs.begins_beyond(larger, needed)
    assert runs.run_within(larger, needed) is None
    assert not runs.begins_beyond(replace(scenario, batch_size=1), needed)


def test_new_tokens_take_room_in_the_context(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path, max_position_embeddings=50))
    limits, _ = find_limits(runs, SCENARIO, find_gpu("h200"), most_tokens_at_once=2**12)
    assert (limits.largest_prompt_tokens, limits.is_whole_context) == (48, True)


def test_a_limit_that_only_the_simulation_sets_is_noted(tmp_path: Path) -> None:
    runs = make_runs(save_config("olmoe", tmp_path))
    scenario = replace(SCENARIO, num_prompt_tokens=62)
    limits, notes = find_limits(runs, scenario, find_gpu("h200"), most_tokens_at_once=2**16)
    assert limits.largest_batch_size == 2**16 // 64
    (note,) = notes
    assert note.startswith("Batches of more than 1,024 sequences may fit too")


def test_without_the_size_of_the_weights_there_are_no_limits(tmp_path: Path) -> None:
    path = save_config("olmoe", tmp_path, dtype="float16", quantization_config=GPTQ)
    with pytest.raises(InputError, match="size of the weights is unknown"):
        find_limits(make_runs(path), replace(SCENARIO, dtype="auto"), find_gpu("h200"))
