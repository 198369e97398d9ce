"""Facts about a model's runs, in a form that outlives the process that found them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeGuard

_OPTIONAL = (int, type(None))


@dataclass
class ModelSize:
    """A model's parameters and context.

    Attributes:
        params: All parameters.
        active_params: Those that a text token runs; None if that is unknown, or differs from token
            to token.
        most_tokens: The most tokens of a run; None if the model doesn't limit them.
    """

    params: int
    active_params: int | None
    most_tokens: int | None


@dataclass
class RunFacts:
    """Facts found so far about runs of one scenario on one kind of GPU.

    Attributes:
        unknown_because: Why the memory of a run is unknown; None if it is known or was not asked.
        is_weighed: Whether the fields on weights and context are filled in.
        context: The most tokens of a sequence; None if the model doesn't say.
        weights_bytes: The weights on the GPU.
        weights_basis: The bytes that a quantized checkpoint's figures rest on; None for plain ones.
        total_bytes: Memory of the run on a device with room for everything it asks for; None if it
            has not run.
        needs_data: Why the model's code needs balanced routing; None if it doesn't, or has not run.
        no_search_because: Why longer prompts are not simulated; None if they are, or if nothing has
            run.
        limited_bytes: Memory of the run on a GPU of that many bytes; None where it doesn't complete.
        prompt_bytes: The same as `total_bytes` for other prompts.
        prompt_refusals: Why other prompts can't be simulated.
        prompt_fits: Whether a run with another prompt, which takes more than the GPU's bytes if it
            can, completes there; by prompt and bytes, as in `4096/25769803776`.
    """

    unknown_because: str | None = None
    is_weighed: bool = False
    context: int | None = None
    weights_bytes: int | None = None
    weights_basis: str | None = None
    total_bytes: int | None = None
    needs_data: str | None = None
    no_search_because: str | None = None
    limited_bytes: dict[str, int | None] = field(default_factory=dict)
    prompt_bytes: dict[str, int] = field(default_factory=dict)
    prompt_refusals: dict[str, str] = field(default_factory=dict)
    prompt_fits: dict[str, bool] = field(default_factory=dict)


def write_size(size: ModelSize) -> dict[str, object]:
    """Return a model's parameters and context as a JSON object."""
    return asdict(size)


def read_size(value: object) -> ModelSize | None:
    """Return a model's size, given the JSON object that was written; None if it is not one."""
    if not _has_fields(value, ModelSize):
        return None
    optional = (value["active_params"], value["most_tokens"])
    if type(value["params"]) is not int or not all(type(each) in _OPTIONAL for each in optional):
        return None
    return ModelSize(**value)


def write_facts(facts: RunFacts) -> dict[str, object]:
    """Return facts as a JSON object."""
    return asdict(facts)


def read_facts(value: object) -> RunFacts | None:
    """Return facts, given the JSON object that was written; None if it is not one."""
    if not _has_fields(value, RunFacts):
        return None
    texts = ("unknown_because", "weights_basis", "needs_data", "no_search_because")
    numbers = ("context", "weights_bytes", "total_bytes")
    is_whole = (
        type(value["is_weighed"]) is bool
        and all(type(value[name]) in (str, type(None)) for name in texts)
        and all(type(value[name]) in _OPTIONAL for name in numbers)
        and _maps_to(value["limited_bytes"], _OPTIONAL)
        and _maps_to(value["prompt_bytes"], (int,))
        and _maps_to(value["prompt_refusals"], (str,))
        and _maps_to(value["prompt_fits"], (bool,))
    )
    return RunFacts(**value) if is_whole else None


def merge_facts(one: RunFacts, other: RunFacts) -> RunFacts:
    """Return what is known from either of two sets of facts about the same runs."""
    merged = replace(one)
    for name in (each.name for each in fields(RunFacts)):
        own, others = getattr(one, name), getattr(other, name)
        setattr(merged, name, {**others, **own} if isinstance(own, dict) else own or others)
    return merged


def _has_fields(value: object, kind: type[ModelSize | RunFacts]) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and set(value) == {field.name for field in fields(kind)}


def _maps_to(value: object, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, Mapping) and all(type(item) in kinds for item in value.values())
