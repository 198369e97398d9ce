"""Refuse options of `generate` that contradict each other or change nothing."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from moetool.choices import without_effect
from moetool.errors import UsageError
from moetool.memory.assisting.refusals import refuse_assisting
from moetool.simulation.caches.kinds import CacheKind
from moetool.simulation.run_options import choose_search

if TYPE_CHECKING:
    from moetool.memory.scenario import Scenario

_FLASH_MODULES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
_CACHE_MODULES = {"quanto": "optimum", "hqq": "hqq"}
# What a sentence calls each cache but the dynamic one, by its article and name.
_CACHES = {
    CacheKind.STATIC: "a static cache",
    CacheKind.OFFLOADED: "an offloaded cache",
    CacheKind.OFFLOADED_STATIC: "an offloaded static cache",
    CacheKind.QUANTIZED: "a quantized cache",
}


def choose_generation(scenario: Scenario) -> dict[str, Any]:
    """Return the arguments by which transformers' `generate` runs a scenario, except its sizes."""
    options: dict[str, Any] = {}
    if scenario.cache is not CacheKind.DYNAMIC:
        options["cache_implementation"] = scenario.cache.value
    if scenario.cache_dtype is not None:
        backend = {"backend": scenario.cache_dtype.backend}
        bits = {} if backend["backend"] == "fp8" else {"nbits": scenario.cache_dtype.num_bits}
        options["cache_config"] = {**backend, **bits}
    return {**options, **choose_search(scenario.num_beams, scenario.num_return_sequences)}


def refuse_generating(scenario: Scenario) -> None:
    """Refuse a scenario whose caches or beams contradict its other options.

    Raises:
        UsageError: Options contradict each other or have no effect.
    """
    refuse_assisting(scenario)
    _refuse_without_new_tokens(scenario)
    cache = scenario.cache
    if scenario.cache_dtype is not None and cache is not CacheKind.QUANTIZED:
        name = _CACHES[cache]
        raise UsageError(
            f"{name[0].upper()}{name[1:]} can't be quantized: transformers' quantized cache is dynamic "
            "and on the GPU.",
            hint="Leave out --cache-dtype, or choose --cache quantized.",
        )
    if scenario.task == "trace" and cache not in (CacheKind.DYNAMIC, CacheKind.STATIC):
        raise UsageError(
            f"`moetool route-trace` can't use {_CACHES[cache]}.",
            hint="Choose --cache dynamic or static, or --task generate.",
        )
    if scenario.task == "trace" and scenario.num_sequences > scenario.batch_size:
        raise UsageError(
            "`moetool route-trace` generates one sequence for each prompt.",
            hint="Leave out --num-beams and --num-return-sequences, or choose --task generate.",
        )
    if 1 < scenario.num_beams < scenario.num_return_sequences:
        raise UsageError(
            f"A search with {scenario.num_beams} beams can't return {scenario.num_return_sequences} "
            "sequences.",
            hint=f"Give --num-beams {scenario.num_return_sequences}, or leave it out to sample them.",
        )


def refuse_missing(scenario: Scenario) -> None:
    """Refuse to run a scenario on this machine if it lacks the package of its cache or attention.

    Raises:
        UsageError: The package isn't installed.
    """
    dtype = scenario.cache_dtype
    needed = {
        scenario.attention: _FLASH_MODULES.get(scenario.attention or ""),
        dtype: None if dtype is None else _CACHE_MODULES.get(dtype.backend),
    }
    for option, module in needed.items():
        if module is not None and find_spec(module) is None:
            raise UsageError(
                f"{option} needs the module {module}, which isn't installed here.",
                hint="Install its package, or leave out --measure.",
            )


def _refuse_without_new_tokens(scenario: Scenario) -> None:
    if scenario.num_new_tokens:
        return
    given = {
        "--cache": _CACHES.get(scenario.cache),
        "--num-beams": "a number of beams" if scenario.num_beams > 1 else None,
        "--num-return-sequences": "a number of returned sequences"
        if scenario.num_return_sequences > 1
        else None,
    }
    without = {flag: words for flag, words in given.items() if words is not None}
    if without:
        raise without_effect(
            without, because="no new tokens are generated", unless="ask for --new-tokens"
        )
