"""Measurements on this machine's GPU, to compare estimates with."""

from __future__ import annotations

import gc
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from moetool.errors import InputError, OutOfMemoryError, UsageError
from moetool.memory.answers.figures import MemoryFigures
from moetool.memory.generating import choose_generation, refuse_missing
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.machine.driver import find_first_visible, is_numbered_by_slot, query_gpus
from moetool.memory.measured.geometry import describe_geometry
from moetool.memory.measured.machine import describe_machine, measure_bus
from moetool.memory.measured.measurement import Measurement, PhaseTimes
from moetool.memory.measured.phase_times import MOST_TIMED_TOKENS, time_phases
from moetool.memory.scenario import Scenario, Task
from moetool.quantized.kinds import Quantization, QuantizedExperts
from moetool.simulation.memory.cache_tensors import find_cache_tensors
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token, find_special_tokens


def refuse_unmeasurable(scenarios: Sequence[Scenario], *, has_weights: bool = False) -> None:
    """Refuse scenarios that this machine can't measure, or that random weights can't stand in for.

    Args:
        has_weights: Whether the model is a checkpoint with weights.

    Raises:
        UsageError: There is no GPU, or a scenario can't be measured with random weights.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            "This machine has no GPU that torch can use: nothing can be measured.",
            hint="Leave out --measure.",
        )
    for scenario in scenarios:
        refuse_missing(scenario)
        if scenario.quantization is not Quantization.NONE:
            _refuse_unloadable(scenario, has_weights=has_weights)
        if scenario.task is Task.TRAIN:
            raise UsageError(
                "The task train can't be measured.",
                hint="Leave out --measure.",
            )
        if scenario.task is Task.TRACE:
            raise UsageError(
                "The task trace can't be measured.",
                hint="Run `moetool route-trace` for that, or leave out --measure.",
            )


def _refuse_unloadable(scenario: Scenario, *, has_weights: bool) -> None:
    if not has_weights:
        raise UsageError(
            "Random weights can't stand in for quantized weights, which have to come from a checkpoint.",
            hint="Name a folder with weights, or leave out --measure.",
        )
    if scenario.experts is QuantizedExperts.QUANTIZED:
        raise UsageError(
            "Quantized experts can't be measured: transformers loads experts unquantized.",
            hint="Leave out --measure, or --experts.",
        )


def measure_scenarios(builder: SkeletonBuilder, scenarios: Sequence[Scenario]) -> list[Measurement]:
    """Run scenarios of one model on the first GPU, and return the measurements.

    Weights are random, or those of the checkpoint if they are to be quantized. Their size is
    measured before anything runs. After its memory is known, a scenario runs again with its phases
    timed; the bus is measured at the end. A scenario that differs only in sizes from the previous one runs
    on the same weights.

    Args:
        builder: Builds the model.
        scenarios: The scenarios, in order.

    Raises:
        OutOfMemoryError: A scenario doesn't fit.
        UsageError: There is no GPU, or a scenario can't be measured with random weights.
    """
    refuse_unmeasurable(scenarios, has_weights=has_weights(builder))
    held_before_bytes = find_held_bytes()
    measured: list[Measurement] = []
    model: PreTrainedModel | None = None
    weights_bytes = 0
    for before, scenario in zip((None, *scenarios[:-1]), scenarios, strict=True):
        with _memory_errors(builder.subject.model):
            if model is None or before is None or before.loading != scenario.loading:
                model = None
                weights_bytes, model = _load(builder, scenario)
            found = _measure(
                model,
                scenario,
                weights_bytes=weights_bytes,
                held_before_bytes=held_before_bytes,
            )
            measured.append(replace(found, times=_time(model, scenario)))
    # Afterwards: memory that is allocated before a run changes where the run's own memory lies.
    model = None
    _release()
    bus, machine = measure_bus(), describe_machine()
    geometry = describe_geometry(builder.subject.config)
    return [replace(each, bus=bus, machine=machine, geometry=geometry) for each in measured]


def _load(builder: SkeletonBuilder, scenario: Scenario) -> tuple[int, PreTrainedModel]:
    _release()
    before = torch.cuda.memory_allocated()
    if scenario.quantization is Quantization.NONE:
        model = builder.build(scenario, device="cuda")
    else:
        model = _load_quantized(builder, scenario)
    _release()
    return torch.cuda.memory_allocated() - before, model


def has_weights(builder: SkeletonBuilder) -> bool:
    """Return whether a model is a checkpoint with weights on this machine."""
    code, headers = builder.subject.code, builder.subject.headers
    return headers is not None and code is not None and Path(code).is_dir()


def find_held_bytes() -> int | None:
    """Return the memory that the first GPU holds before this process uses it; None if unknown.

    This asks the driver's own tool: torch would have to create a context first, which would count.
    """
    has_context: Any = torch.cuda.is_initialized
    if has_context():
        return None
    visible = find_first_visible() or "0"
    try:
        # CUDA numbers GPUs of different kinds by speed, the driver's tool by their slot.
        if visible.isdecimal() and not is_numbered_by_slot():
            names = {name for (name,) in query_gpus(["name"])}
            if len(names) > 1:
                return None
        return int(query_gpus(["memory.used"], f"--id={visible}")[0][0]) * 2**20
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _load_quantized(builder: SkeletonBuilder, scenario: Scenario) -> PreTrainedModel:
    """Return a checkpoint's model with weights that bitsandbytes quantizes as they are loaded."""
    config = builder.make_config()
    skeleton = builder.build(replace(scenario, quantization=Quantization.NONE))
    make_config: Any = BitsAndBytesConfig
    is_int8 = scenario.quantization is Quantization.INT8
    in_4_bits: dict[str, Any] = {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": scenario.quantization.value,
        "bnb_4bit_use_double_quant": scenario.is_double_quantized,
        "bnb_4bit_compute_dtype": skeleton.dtype,
    }
    try:
        model: Any = type(skeleton).from_pretrained(
            builder.subject.code,
            config=config,
            dtype=skeleton.dtype,
            device_map={"": 0},
            attn_implementation=scenario.attention,
            experts_implementation=scenario.experts_implementation,
            quantization_config=make_config(**({"load_in_8bit": True} if is_int8 else in_4_bits)),
        )
    except torch.OutOfMemoryError:
        raise
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{builder.subject.model} can't be loaded in {scenario.quantization.value}.",
            hint="Install bitsandbytes, or leave out --measure.",
            facts=[f"seen: {(str(error).splitlines() or [type(error).__name__])[0]}"],
        ) from error
    loaded: PreTrainedModel = model.eval()
    return loaded


def _measure(
    model: PreTrainedModel,
    scenario: Scenario,
    *,
    weights_bytes: int,
    held_before_bytes: int | None = None,
) -> Measurement:
    _release()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    cache_bytes = _run(model, scenario)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    context_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved()
    context_bytes -= held_before_bytes or 0
    peak_reserved_bytes = torch.cuda.max_memory_reserved()
    return Measurement(
        gpu=torch.cuda.get_device_name(),
        figures=MemoryFigures(
            weights_bytes=weights_bytes,
            cache_bytes=cache_bytes,
            peak_allocated_bytes=torch.cuda.max_memory_allocated(),
            peak_reserved_bytes=peak_reserved_bytes,
            total_device_bytes=peak_reserved_bytes + context_bytes,
        ),
        context_bytes=context_bytes,
        seconds=seconds,
        held_before_bytes=held_before_bytes,
    )


def _make_prompts(model: PreTrainedModel, shape: tuple[int, int]) -> torch.Tensor:
    """Return random tokens without special ones; equal tokens would all go to the same experts."""
    embeddings: Any = model.get_input_embeddings()
    num_tokens: int = embeddings.weight.shape[0]
    chosen = torch.randint(num_tokens, shape, generator=torch.Generator().manual_seed(0))
    special = torch.tensor(sorted(find_special_tokens(model.config)), dtype=torch.long)
    return torch.where(torch.isin(chosen, special), find_ordinary_token(model.config), chosen)


@torch.inference_mode()
def _run(model: PreTrainedModel, scenario: Scenario) -> int:
    """Run a scenario, and return the bytes of its cache at the end."""
    shape = (scenario.batch_size, scenario.num_prompt_tokens)
    input_ids = _make_prompts(model, shape).to("cuda")
    options: dict[str, Any] = {}
    if scenario.has_padding:
        mask = torch.ones(shape, dtype=torch.long, device="cuda")
        mask[0, 0] = 0
        options["attention_mask"] = mask
    if scenario.task is Task.FORWARD:
        output = model(input_ids, **options)
    else:
        options |= {"max_new_tokens": scenario.num_new_tokens, "disable_compile": True}
        options |= choose_generation(scenario)
        if model.config.is_encoder_decoder:
            options["decoder_start_token_id"] = find_ordinary_token(model.config)
        generate: Any = model.generate
        output = generate(input_ids, return_dict_in_generate=True, **options)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in find_cache_tensors(output)
        if tensor.device.type == "cuda"
    }
    return sum(storages.values())


def _time(model: PreTrainedModel, scenario: Scenario) -> PhaseTimes | None:
    """Return the times of a scenario's phases on loaded kernels; None if it doesn't fit again."""
    _release()
    num_new_tokens = min(scenario.num_new_tokens, MOST_TIMED_TOKENS)
    short = replace(scenario, num_new_tokens=num_new_tokens)
    try:
        return time_phases(model, partial(_run, model, short), synchronize=torch.cuda.synchronize)
    except torch.OutOfMemoryError:
        return None


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _memory_errors(model: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{model} doesn't fit on this machine's GPU in this scenario.",
            hint="Measure a smaller scenario.",
        ) from error
