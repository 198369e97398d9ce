"""Summaries of timelines, by which simulations are compared with runs of real models."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from moetool.simulation.caches.kinds import CacheDtype, CacheKind
from moetool.simulation.memory.allocations import AllocationRecorder
from moetool.simulation.memory.cache_tensors import find_cache_tensors
from moetool.simulation.memory.memory_run import RunOptions
from moetool.simulation.memory.ordinary_tokens import find_ordinary_token
from moetool.simulation.memory.timeline import Call, Event, Origin, Origins, Timeline
from moetool.simulation.meta.set_order import going_through_sets_in_order

# They have no `generate`.
NOT_GENERATING = (
    "deepseek_ocr2_text",
    "openai_privacy_filter",
    "qwen3_omni_moe_talker_text",
    "unlimited_ocr_text",
)
# They read a tensor that depends on weights, or draw from a distribution.
NOT_SIMULATED = ("diffusion_gemma", "glm5_next")
# They read which experts were chosen, and loop over those.
LOOK_UP_EXPERTS = (
    "dbrx",
    "jetmoe",
    "longcat_flash",
    "nllb-moe",
    "step3p7",
    "switch_transformers",
)
# Its eager attention assumes another number of heads that share keys.
ONLY_SDPA = ("unlimited_ocr",)

# Literal numbers in code become CPU tensors, which are copied to the meta device but not to the CPU.
_MOVES_NUMBERS = ("lift_fresh", "detach_", "_to_copy", "scalar_tensor")
_NUMBER_BYTES = 8


@dataclass(frozen=True)
class Happening:
    """A birth, or all deaths until the next one.

    Attributes:
        origin: Operation and full path of the module where it was born; empty for deaths.
        num_bytes: Its size; 0 for deaths.
        died: Numbers of the births that died, in ascending order.
    """

    origin: tuple[str, str] = ("", "")
    num_bytes: int = 0
    died: tuple[int, ...] = ()


@dataclass(frozen=True)
class Summary:
    """A timeline without block numbers.

    Attributes:
        happenings: Births and deaths, in order.
        num_births_before: Number of births before each call.
        cache_bytes: Size of the cache after each call.
        largest_live_bytes: The most memory alive at once, without rounding.
    """

    happenings: list[Happening]
    num_births_before: list[int]
    cache_bytes: list[int]
    largest_live_bytes: int


def summarize(
    timeline: Timeline, *, with_numbers: bool = True, without: str | None = None
) -> Summary:
    """Return a summary of a timeline until the last birth.

    Args:
        with_numbers: Include tensors of literal numbers in code.
        without: Path of a module to leave out.
    """
    numbers: dict[int, int] = {}
    sizes: dict[int, int] = {}
    happenings: list[Happening] = []
    deaths: list[int] = []
    births_before: list[int] = []
    live = largest = 0
    for event in timeline.events:
        births_before.append(len(numbers))
        if event.num_bytes < 0:
            if event.block in numbers:
                deaths.append(numbers[event.block])
                live -= sizes[event.block]
            continue
        origin = timeline.origins[event.origin]
        path = ".".join(part for part in (origin.layer, origin.module) if part)
        if path == without or (not with_numbers and _is_number(event, origin)):
            continue
        if deaths:
            happenings.append(Happening(died=tuple(sorted(deaths))))
            deaths = []
        numbers[event.block] = len(numbers)
        sizes[event.block] = event.num_bytes
        live += event.num_bytes
        largest = max(largest, live)
        happenings.append(Happening((origin.operation, path), event.num_bytes))
    births_before.append(len(numbers))
    return Summary(
        happenings,
        [births_before[call.first_event] for call in timeline.calls],
        [call.cache_bytes for call in timeline.calls],
        largest,
    )


def until_last_call(timeline: Timeline) -> Timeline:
    """Return a timeline that ends with its last call."""
    end = timeline.calls[-1].end_event
    return dataclasses.replace(timeline, events=timeline.events[:end])


def _is_number(event: Event, origin: Origin) -> bool:
    return origin.operation in _MOVES_NUMBERS and event.num_bytes <= _NUMBER_BYTES


def set_up(model: PreTrainedModel, *, attention: str = "eager", experts: str = "batched_mm") -> Any:
    """Return a model set up so that the same code runs on the CPU and on the meta device.

    No token ends a text, since a random model might generate it by chance.
    """
    model.set_attn_implementation(attention)
    if "grouped_mm" in model.get_experts_implementation().values():
        model.set_experts_implementation(experts)
    generation: Any = model.generation_config
    generation.eos_token_id = None
    return model.eval()


def options_for(family: str, **given: Any) -> RunOptions:
    """Return the options under which a family's skeleton runs."""
    return RunOptions(is_routing_balanced=family in LOOK_UP_EXPERTS, **given)


def generate_on_cpu(
    model: PreTrainedModel, run: RunOptions, *, num_prompt_tokens: int, num_new_tokens: int
) -> Timeline:
    """Return the timeline of a real model's generation on the CPU.

    Args:
        model: The model, with weights.
        run: Options of the run.
        num_prompt_tokens: Length of the prompt.
        num_new_tokens: Number of tokens to generate.
    """
    origins = Origins()
    recorder = AllocationRecorder(model, origins=origins, device="cpu")
    token_id = find_ordinary_token(model.config)
    options: dict[str, Any] = {"max_new_tokens": num_new_tokens, "disable_compile": True}
    if model.config.is_encoder_decoder:
        options["decoder_start_token_id"] = token_id
    options |= run.choose_search()
    if run.cache.kind is not CacheKind.DYNAMIC:
        options["cache_implementation"] = run.cache.kind.value
    if run.cache.dtype is CacheDtype.FP8:
        options["cache_config"] = {"backend": "fp8"}
    calls: list[Call] = []
    generate: Any = model.generate
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        # Python's own order differs from process to process, and so would the two runs.
        stack.enter_context(going_through_sets_in_order(model))
        stack.enter_context(recorder)
        stack.enter_context(watching(model, recorder, calls))
        shape = (run.batch_size, num_prompt_tokens)
        input_ids = torch.zeros(shape, dtype=torch.long).fill_(token_id)
        if run.has_padding:
            options["attention_mask"] = torch.ones(shape, dtype=torch.long)
            options["attention_mask"][0, 0] = 0
        result = generate(input_ids, **options)
        events = tuple(recorder.events)
    del result
    return Timeline(events, origins.found, tuple(calls), recorder.workspace_block)


@contextmanager
def watching(
    model: PreTrainedModel, recorder: AllocationRecorder, calls: list[Call]
) -> Iterator[None]:
    """Record every call of a real model and the size of its cache."""
    starts: list[int] = []

    def begin(*_: object) -> None:
        starts.append(len(recorder.events))

    def end(_module: object, _args: object, output: Any) -> None:
        storages = {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in find_cache_tensors(output)
        }
        calls.append(Call(starts[-1], len(recorder.events), frozenset(), sum(storages.values())))

    hooks = [model.register_forward_pre_hook(begin), model.register_forward_hook(end)]
    yield
    for hook in hooks:
        hook.remove()


def make_timeline(
    events: Sequence[tuple[int, int]],
    *,
    call_ends: Sequence[int],
    cache: Sequence[dict[int, int]],
    workspace_block: int | None = None,
) -> Timeline:
    """Return a handmade timeline whose calls follow each other directly.

    Args:
        events: Blocks, and the bytes of their births or -1.
        call_ends: By call, the number of events until its end.
        cache: By call, the bytes of the blocks that the cache then holds.
        workspace_block: The block that products keep.
    """
    starts = [0, *call_ends[:-1]]
    calls = tuple(
        Call(start, end, frozenset(blocks), sum(blocks.values()))
        for start, end, blocks in zip(starts, call_ends, cache, strict=True)
    )
    origins = [Origin("layers.0", "mlp", f"operation {number}") for number in range(len(events))]
    return Timeline(
        tuple(Event(block, size, place) for place, (block, size) in enumerate(events)),
        origins,
        calls,
        workspace_block,
    )
