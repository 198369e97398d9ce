"""What of a model's runs fits on which GPU, alone, with others or with the host's help."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

from moetool.anatomy.config_fields import find_context
from moetool.catalogue.gpus import Gpu, read_gpus
from moetool.errors import MoetoolError
from moetool.memory.fitting.fits import list_fits
from moetool.memory.fitting.limits import find_limits
from moetool.memory.result import Fit, Limits, RankBytes
from moetool.memory.scenario import Scenario
from moetool.memory.sharing.device_maps import share_by_device_map
from moetool.memory.sharing.parallel import share_by_expert_parallel, share_by_tensor_parallel
from moetool.memory.simulated.model_runs import CONTEXT_BYTES, ModelRuns
from moetool.memory.simulated.runs import SimulatedRun
from moetool.quantized.kinds import Quantization

_QUANTIZATIONS = (Quantization.NONE, Quantization.INT8, Quantization.NF4)
_NUMS_RANKS = (2, 4, 8)
# Simulations keep the ids of no more.
_MOST_TOKENS_AT_ONCE = 2**22


def list_fits_everywhere(runs: ModelRuns, scenario: Scenario) -> tuple[Fit, ...]:
    """Return on which of all known GPUs a scenario fits.

    How many of them it takes is told for the scenario's own quantization.
    """

    @cache
    def count(memory_bytes: int) -> int | None:
        return _count_gpus(runs, scenario, memory_bytes=memory_bytes)

    return list_fits(
        _find_totals(runs, scenario),
        read_gpus().values(),
        find_total_within=partial(_find_total_within, runs, scenario),
        count_gpus=lambda quantization, gpu: (
            count(gpu.memory_bytes) if quantization is scenario.quantization else None
        ),
    )


def list_fits_on(runs: ModelRuns, scenario: Scenario, gpu: Gpu) -> tuple[Fit, ...]:
    """Return whether a scenario fits on a GPU, or on how many of them, under each quantization."""
    return list_fits(
        _find_totals(runs, scenario),
        [gpu],
        find_total_within=partial(_find_total_within, runs, scenario),
        count_gpus=lambda quantization, gpu: _count_gpus(
            runs, quantize_scenario(scenario, quantization), memory_bytes=gpu.memory_bytes
        ),
    )


def quantize_scenario(scenario: Scenario, quantization: Quantization) -> Scenario:
    """Return a scenario with weights stored otherwise."""
    is_double_quantized = scenario.is_double_quantized and quantization in (
        Quantization.NF4,
        Quantization.FP4,
    )
    return replace(scenario, quantization=quantization, is_double_quantized=is_double_quantized)


def find_limits_on(runs: ModelRuns, scenario: Scenario, gpu: Gpu) -> Limits:
    """Return the largest scenarios that fit on a GPU, by runs of the first and the last step.

    What has more than 2^22 tokens at once is not simulated, and told not to fit.
    """

    def total_bytes_of(batch_size: int, num_prompt_tokens: int) -> int:
        if batch_size * (num_prompt_tokens + scenario.num_new_tokens) > _MOST_TOKENS_AT_ONCE:
            return gpu.memory_bytes + 1
        sized = replace(scenario, batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
        total_bytes = runs.run(sized, is_brief=True).figures.total_device_bytes
        assert total_bytes is not None
        return total_bytes

    def runs_within(batch_size: int, num_prompt_tokens: int) -> bool:
        if batch_size * (num_prompt_tokens + scenario.num_new_tokens) > _MOST_TOKENS_AT_ONCE:
            return False
        sized = replace(scenario, batch_size=batch_size, num_prompt_tokens=num_prompt_tokens)
        return runs.run_within(sized, gpu.memory_bytes, is_brief=True) is not None

    return find_limits(
        total_bytes_of,
        runs_within=runs_within,
        gpu=gpu,
        batch_size=scenario.batch_size,
        num_prompt_tokens=scenario.num_prompt_tokens,
        num_new_tokens=scenario.num_new_tokens,
        context=find_context(runs.builder.make_config()),
    )


def list_ranks(
    runs: ModelRuns, scenario: Scenario, gpu: Gpu, *, num_gpus: int | None
) -> tuple[RankBytes, ...]:
    """Return what each of several GPUs would hold of the weights, by each way of sharing them.

    Args:
        runs: The model's.
        scenario: What is run.
        gpu: What each of them is.
        num_gpus: How many it takes with a device map; None if no number does: then one shows what
            is left to the host.

    Returns:
        A row for each way; nothing where what each parameter takes is unknown.
    """
    skeleton = runs.get_held(scenario)
    if skeleton is None:
        return ()
    by_map = share_by_device_map(
        skeleton,
        gpu_memory_bytes=gpu.memory_bytes,
        num_gpus=num_gpus or 1,
        reserve_bytes=CONTEXT_BYTES + _count_other_bytes(runs.run_on(scenario, gpu.memory_bytes)),
        quantization=scenario.quantization,
    )
    shared = (
        share(skeleton, num_gpus=number)
        for share in (share_by_tensor_parallel, share_by_expert_parallel)
        for number in _NUMS_RANKS
    )
    return (by_map, *shared)


def _find_totals(runs: ModelRuns, scenario: Scenario) -> dict[Quantization, int | None]:
    return {
        quantization: _find_total_bytes(runs, scenario, quantization)
        for quantization in dict.fromkeys((*_QUANTIZATIONS, scenario.quantization))
    }


def _find_total_bytes(
    runs: ModelRuns, scenario: Scenario, quantization: Quantization
) -> int | None:
    """Return what a scenario takes under a quantization; None if the model can't be quantized so."""
    is_own = quantization is scenario.quantization
    try:
        run = runs.run(quantize_scenario(scenario, quantization), is_brief=not is_own)
    except MoetoolError:
        if is_own:
            raise
        return None
    return run.figures.total_device_bytes


def _find_total_within(
    runs: ModelRuns, scenario: Scenario, quantization: Quantization, gpu: Gpu
) -> int | None:
    """Return what a scenario takes under a quantization on a GPU; None if it doesn't fit."""
    run = runs.run_within(
        quantize_scenario(scenario, quantization),
        gpu.memory_bytes,
        is_brief=quantization is not scenario.quantization,
    )
    return None if run is None else run.figures.total_device_bytes


def _count_gpus(runs: ModelRuns, scenario: Scenario, *, memory_bytes: int) -> int | None:
    run = runs.run(scenario, is_brief=True)
    maps = runs.get_device_maps(scenario)
    if maps is None:
        return None
    return maps.count_gpus(
        gpu_memory_bytes=memory_bytes,
        cache_bytes=run.figures.cache_bytes or 0,
        activation_bytes=_count_other_bytes(run),
        context_bytes=CONTEXT_BYTES,
    )


def _count_other_bytes(run: SimulatedRun) -> int:
    """Return what a run holds in reserve beside weights and cache at its peak."""
    figures = run.figures
    assert figures.peak_reserved_bytes is not None
    assert figures.weights_bytes is not None
    return figures.peak_reserved_bytes - figures.weights_bytes - (figures.cache_bytes or 0)
