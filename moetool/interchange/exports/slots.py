"""The part of a placement that engines load: which expert each slot of each layer holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moetool.analysis.placement.result import Method, MethodPlacement, Placement
from moetool.errors import UsageError
from moetool.wording import number_of

_DECODER = "decoder"


@dataclass(frozen=True)
class SlotPlan:
    """The slots of every routed layer; slots of a GPU follow each other.

    Attributes:
        layers: Numbers of the layers, among all hidden layers of the model, ascending.
        slots: Expert of each slot, by layer. # (num_layers, num_slots)
        load: Assignments of each expert, by layer. # (num_layers, num_experts)
        num_gpus: GPUs that share the slots evenly.
        num_hidden_layers: Layers of the model, dense ones included; None if unknown.
    """

    layers: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    load: tuple[tuple[int, ...], ...]
    num_gpus: int
    num_hidden_layers: int | None

    @property
    def num_experts(self) -> int:
        """Experts of a layer."""
        return len(self.load[0])

    @property
    def num_slots(self) -> int:
        """Slots of a layer."""
        return len(self.slots[0])

    @property
    def num_redundant_experts(self) -> int:
        """Slots of a layer that hold further replicas."""
        return self.num_slots - self.num_experts

    def split_by_gpu(self, slots: Sequence[int]) -> list[list[int]]:
        """Return the experts of each GPU, given those of each slot."""
        size = len(slots) // self.num_gpus
        return [list(slots[start : start + size]) for start in range(0, len(slots), size)]

    def require_hidden_layers(self, *, engine: str) -> int:
        """Return how many layers the model has.

        Args:
            engine: Name of the engine whose file needs it.

        Raises:
            UsageError: It is unknown, or the trace has a later layer.
        """
        if self.num_hidden_layers is None:
            raise unknown_hidden_layers(engine)
        if self.layers[-1] >= self.num_hidden_layers:
            raise UsageError(
                f"The trace has layer {self.layers[-1]}, but the model has only "
                f"{number_of(self.num_hidden_layers, 'hidden layer')}.",
                hint="Correct --num-hidden-layers, or name the traced model with --model.",
            )
        return self.num_hidden_layers

    def list_unrouted(self) -> list[int]:
        """Return the hidden layers that the trace has no routing of, if their number is known."""
        return sorted(set(range(self.num_hidden_layers or 0)) - set(self.layers))


def make_slot_plan(result: Placement, *, method: Method, num_hidden_layers: int | None) -> SlotPlan:
    """Return the slots of a method.

    Args:
        result: The placements.
        method: The one to take.
        num_hidden_layers: Layers of the model, dense ones included; None if unknown.

    Raises:
        UsageError: The method is unknown for this trace, or engines have no word for such a model:
            one with experts in an encoder, or with different numbers of experts.
    """
    found: MethodPlacement | None = result.methods[method]
    if found is None:
        raise UsageError(
            f"Placement by {method} needs a trace of tokens; this is a load table.",
            hint="Give --method eplb, which needs loads alone.",
        )
    others = [layer for layer in result.layers if layer.stack != _DECODER]
    if others:
        raise UsageError(
            f"The trace has routed layers of the stack '{others[0].stack}', and engines load "
            "placements of a decoder alone.",
            hint="Read the report without --export.",
        )
    layers = sorted(result.layers, key=lambda layer: layer.layer)
    if len({len(layer.load) for layer in layers}) > 1:
        raise UsageError(
            "The layers have different numbers of experts, and engines load placements of equal "
            "ones alone.",
            hint="Read the report without --export.",
        )
    return SlotPlan(
        layers=tuple(layer.layer for layer in layers),
        slots=tuple(found.physical_to_logical[layer.name] for layer in layers),
        load=tuple(layer.load for layer in layers),
        num_gpus=result.cluster.num_gpus,
        num_hidden_layers=num_hidden_layers,
    )


def fill_rows(plan: SlotPlan, num_hidden_layers: int) -> list[list[int]]:
    """Return the experts of each slot of every hidden layer; unrouted ones in the order of ids."""
    rows = dict(zip(plan.layers, plan.slots, strict=True))
    plain = [slot % plan.num_experts for slot in range(plan.num_slots)]
    return [list(rows.get(layer, plain)) for layer in range(num_hidden_layers)]


def say_layers(layers: Sequence[int]) -> str:
    """Return layers in words, such as `layer 0` or `layers 1-26, 28`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return f"layer{'' if len(layers) == 1 else 's'} {', '.join(parts)}"


def unknown_hidden_layers(engine: str) -> UsageError:
    """Return the error for a file with a row for each of an unknown number of layers."""
    return UsageError(
        f"A file for {engine} has a row for every hidden layer, and the number of those of this "
        "model is unknown.",
        hint="Give --model or --num-hidden-layers (num_hidden_layers in config.json).",
    )
