"""Other ways to hold a scenario's weights, which an estimate simulates as well."""

from __future__ import annotations

from dataclasses import replace

from moetool.memory.fitting.fits import QUANTIZATIONS
from moetool.memory.scenario import Scenario, Task
from moetool.memory.simulated.model_runs import ModelRuns
from moetool.memory.simulated.work import NUM_BRIEF_PASSES, NUM_PASSES, is_allowed_work
from moetool.quantizing.kinds import Quantization


def list_variants(runs: ModelRuns, scenario: Scenario, *, work: int) -> list[tuple[Scenario, bool]]:
    """Return the variants of a scenario, each with whether it is brief, whose work is allowed.

    Args:
        work: The work of a pass through the model.
    """
    found: list[tuple[Scenario, bool]] = []
    dequantized = find_dequantized(runs, scenario)
    if dequantized is not None and is_allowed_work(work, NUM_PASSES, most_work=runs.most_work):
        found.append((dequantized, False))
    others = list_other_quantizations(scenario)
    num_passes = len(others) * NUM_BRIEF_PASSES
    if is_allowed_work(work, num_passes, most_work=runs.most_work):
        found += [(scenario.quantized(quantization), True) for quantization in others]
    return found


def find_dequantized(runs: ModelRuns, scenario: Scenario) -> Scenario | None:
    """Return the scenario with dequantized weights; None if the modules are the same."""
    if runs.loader.load(scenario).packed is None:
        return None
    dtype = str(runs.loader.builder.find_dtype(scenario)).removeprefix("torch.")
    return replace(scenario, dtype=dtype)


def list_other_quantizations(scenario: Scenario) -> list[Quantization]:
    """Return the quantizations that a scenario is simulated with as well."""
    if scenario.task is Task.TRAIN:
        return []
    return [each for each in QUANTIZATIONS if each is not scenario.quantization]
