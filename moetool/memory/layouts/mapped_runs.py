"""The run on each device of transformers' device map, as accelerate runs it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from moetool.errors import InputError
from moetool.memory.answers.figures import Method
from moetool.memory.gpu_overhead import CONTEXT_BYTES, find_workspace_bytes
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.scenario import Scenario, Task
from moetool.memory.sharing.device_maps import DeviceMaps
from moetool.memory.simulated.routing_modules import find_routing_modules
from moetool.memory.simulated.runs import make_run_options
from moetool.memory.simulated.simulated_run import SimulatedRun, make_figures, make_peaks
from moetool.process.garbage import seldom_collected
from moetool.simulation.memory.allocator.weights import allocate_weights
from moetool.simulation.memory.cuda_kernels import LT_WORKSPACE_BYTES
from moetool.simulation.memory.long_generation import simulate_generation
from moetool.simulation.memory.memory_run import MemoryRun
from moetool.simulation.memory.replay.memory_replay import MemoryProfile, PhasePeak, replay_timeline
from moetool.simulation.memory.timeline import AllocatedParts, Origin, Timeline
from moetool.simulation.meta.generation import CantSimulate, TooManyOperations
from moetool.simulation.parallel.moved import (
    DeviceOfPath,
    list_weight_bytes_on,
    moving_arguments,
    part_by_device,
)


@seldom_collected()
def run_by_device_map(
    loader: ModelLoader, scenario: Scenario, *, memory_bytes: int, num_gpus: int
) -> list[SimulatedRun]:
    """Return the run of each GPU with `device_map="auto"`.

    Copies of what is moved between GPUs are followed like other tensors.

    Args:
        loader: Loads the model.
        scenario: The run.
        memory_bytes: The memory of each GPU.
        num_gpus: The number of GPUs.

    Raises:
        InputError: The map leaves layers to the host, or the model's code can't run without data.
    """
    model = loader.load(scenario)
    held = model.routed_held
    if held is None or not (model.packed or model.runs_in_full_precision):
        raise InputError(
            "such quantized weights are not simulated on several GPUs.",
            hint="Give --dtype bfloat16.",
        )
    maps = DeviceMaps(held, scenario.quantization)
    device_map = maps.find_devices(budget_bytes=memory_bytes - CONTEXT_BYTES, num_gpus=num_gpus)
    loader.say(f"simulating {loader.name(scenario)}: device map on {num_gpus} GPUs")
    skeleton = model.packed or loader.builder.build(scenario)
    options = make_run_options(
        scenario,
        workspace_bytes=find_workspace_bytes(loader.gpu),
        lt_workspace_bytes=LT_WORKSPACE_BYTES,
    )
    options = replace(options, is_routing_kept=scenario.task is Task.TRACE)
    notes: list[str] = []
    modules = find_routing_modules(skeleton, notes=notes) if options.is_routing_kept else ()
    method = Method.SIMULATED
    with moving_arguments(skeleton, device_map), model.offer_kernels():
        # Equal layers may be on different devices, so each of them runs.
        begin = partial(MemoryRun, skeleton, routing_modules=modules, is_each_layer_run=True)
        try:
            timeline = _run(begin(options), scenario)
        except (CantSimulate, TooManyOperations) as error:
            try:
                balanced = replace(options, is_routing_balanced=True, may_scan=True)
                timeline = _run(begin(balanced), scenario)
            except CantSimulate as again:
                raise InputError(
                    f"it can't run without data: {again.reason}.",
                    hint="Choose --parallel tensor or data.",
                ) from error
            method = Method.APPROXIMATE
    devices = DeviceOfPath(device_map)
    runs = []
    for device in range(num_gpus):
        weight_bytes = list_weight_bytes_on(skeleton, devices, device)
        own = part_by_device(
            timeline,
            devices,
            device,
            workspace_bytes=options.workspace_bytes,
            lt_bytes=options.lt_workspace_bytes,
        )
        replay = partial(_replay, own, weight_bytes) if own.events else partial(_hold, weight_bytes)
        profile = replay(None)
        runs.append(
            SimulatedRun(
                make_figures(profile, context_bytes=CONTEXT_BYTES),
                make_peaks(profile),
                method,
                tuple(notes),
                replay=replay,
            )
        )
    return runs


def _replay(timeline: Timeline, weight_bytes: list[int], capacity: int | None) -> MemoryProfile:
    return replay_timeline(timeline, weight_bytes=weight_bytes, capacity_bytes=capacity)


def _hold(weight_bytes: list[int], capacity: int | None) -> MemoryProfile:
    """Return the memory of a GPU on which nothing runs."""
    allocator = allocate_weights(weight_bytes, capacity_bytes=capacity)
    allocated_bytes = allocator.allocated_bytes
    parts = AllocatedParts(allocated_bytes, cache_bytes=0, activation_bytes=0, workspace_bytes=0)
    return MemoryProfile(
        weights_bytes=allocated_bytes,
        cache_bytes=0,
        peak_allocated_bytes=allocated_bytes,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        prefill=PhasePeak(parts, Origin(layer="", module="", operation="")),
        decode=None,
        prefill_reserved_bytes=allocator.peak_reserved_bytes,
        prompt_cache_bytes=0,
    )


def _run(run: MemoryRun, scenario: Scenario) -> Timeline:
    if scenario.task is Task.FORWARD:
        return run.forward(num_prompt_tokens=scenario.num_prompt_tokens)
    if not scenario.num_new_tokens:
        return run.read(num_prompt_tokens=scenario.num_prompt_tokens)
    num_prompt_tokens, num_new_tokens = scenario.num_prompt_tokens, scenario.num_new_tokens
    begin = partial(simulate_generation, run) if run.can_start_later else run.generate
    found = begin(num_prompt_tokens=num_prompt_tokens, num_new_tokens=num_new_tokens)
    if found is None:
        raise InputError(
            "its steps differ from one to the next.", hint="Choose --parallel tensor or data."
        )
    return found
