"""What this machine's GPU shows for a scenario, to compare an estimate with."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from moetool.errors import OutOfMemoryError, UsageError
from moetool.memory.result import Measurement, MemoryFigures
from moetool.memory.scenario import CacheKind, Quantization, Scenario, Task
from moetool.memory.skeletons import SkeletonBuilder
from moetool.simulation.memory_run import find_cache_tensors, find_ordinary_token


def refuse_unmeasurable(scenarios: Sequence[Scenario]) -> None:
    """Refuse to measure what this machine can't, or what random weights can't stand for.

    Raises:
        UsageError: There is no GPU, or a scenario can't be measured with random weights.
    """
    if not torch.cuda.is_available():
        raise UsageError(
            "This machine has no GPU that torch can use: nothing can be measured.",
            hint="Leave --measure out.",
        )
    for scenario in scenarios:
        reason = None
        if scenario.quantization is not Quantization.NONE:
            reason = "quantized weights, which have to come from a checkpoint"
        elif scenario.task is Task.TRACE:
            reason = "a trace: run `moetool route-trace` for that"
        if reason is not None:
            raise UsageError(
                f"Random weights can't be used to measure {reason}.", hint="Leave --measure out."
            )


def measure_scenarios(builder: SkeletonBuilder, scenarios: Sequence[Scenario]) -> list[Measurement]:
    """Run scenarios of one model on the first GPU, with random weights, and return what it shows.

    Weights are measured before anything runs. A scenario that differs in nothing but sizes from the
    one before runs on the same weights.

    Args:
        builder: Builds the model.
        scenarios: What is run, in order.

    Raises:
        OutOfMemoryError: A scenario doesn't fit.
        UsageError: There is no GPU, or a scenario can't be measured with random weights.
    """
    refuse_unmeasurable(scenarios)
    measured: list[Measurement] = []
    model: PreTrainedModel | None = None
    weights_bytes = 0
    for before, scenario in zip((None, *scenarios[:-1]), scenarios, strict=True):
        with _memory_errors(builder.subject.model):
            if model is None or before is None or not _have_model_in_common(before, scenario):
                model = None
                weights_bytes, model = _load(builder, scenario)
            measured.append(_measure(model, scenario, weights_bytes=weights_bytes))
    return measured


def _load(builder: SkeletonBuilder, scenario: Scenario) -> tuple[int, PreTrainedModel]:
    _release()
    before = torch.cuda.memory_allocated()
    model = builder.build(scenario, device="cuda")
    _release()
    return torch.cuda.memory_allocated() - before, model


def _measure(model: PreTrainedModel, scenario: Scenario, *, weights_bytes: int) -> Measurement:
    _release()
    torch.cuda.reset_peak_memory_stats()
    token_id = find_ordinary_token(model.config)
    shape = (scenario.batch_size, scenario.num_prompt_tokens)
    start = time.perf_counter()
    input_ids = torch.full(shape, token_id, device="cuda")
    options: dict[str, Any] = {}
    if scenario.has_padding:
        mask = torch.ones(shape, dtype=torch.long, device="cuda")
        mask[0, 0] = 0
        options["attention_mask"] = mask
    with torch.inference_mode():
        cache_bytes = _run(model, scenario, input_ids, options)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    context_bytes = total_bytes - free_bytes - torch.cuda.memory_reserved()
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
    )


def _run(
    model: PreTrainedModel, scenario: Scenario, input_ids: torch.Tensor, options: dict[str, Any]
) -> int:
    """Run a scenario, and return what its cache holds in the end."""
    if scenario.task is Task.FORWARD:
        output = model(input_ids, **options)
    else:
        options |= {"max_new_tokens": scenario.num_new_tokens, "disable_compile": True}
        if scenario.cache is CacheKind.STATIC:
            options["cache_implementation"] = "static"
        if model.config.is_encoder_decoder:
            options["decoder_start_token_id"] = find_ordinary_token(model.config)
        generate: Any = model.generate
        output = generate(input_ids, return_dict_in_generate=True, **options)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in find_cache_tensors(output)
    }
    return sum(storages.values())


def _have_model_in_common(one: Scenario, other: Scenario) -> bool:
    return (one.dtype, one.attention, one.experts_implementation) == (
        other.dtype,
        other.attention,
        other.experts_implementation,
    )


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _memory_errors(model: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"{model} doesn't fit on this machine's GPU as asked for.",
            hint="Measure a smaller scenario.",
        ) from error
