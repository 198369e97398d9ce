"""Shapes of the routed layers, for formats that don't state them: from a model, or given by hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from moetool.errors import InputError, UsageError
from moetool.interchange.imports.runs import Facts
from moetool.printable import printable
from moetool.trace.model_counts import ModelCounts

MODEL_HINT = "Name the model with --model, or give {options} by hand."


@dataclass(frozen=True)
class GivenShapes:
    """Facts that the user states about the model that was recorded; None means not stated.

    Attributes:
        routed: Number of experts and top-k by the layer's number, for the routed layers; None if
            it isn't known which layers route.
        num_layers: All hidden layers, dense ones included.
        num_experts: Of every routed layer.
        top_k: Of every routed layer.
        model: The model's name.
        model_type: As transformers has it.
        model_counts: Parameters of the model and FLOPs of a token, for the metadata of a trace.
        notes_on_counts: Reasons why some of these are unknown.
        notes: About the model's files.
    """

    routed: Mapping[int, tuple[int | None, int | None]] | None = None
    num_layers: int | None = None
    num_experts: int | None = None
    top_k: int | None = None
    model: str | None = None
    model_type: str | None = None
    model_counts: ModelCounts = field(default_factory=ModelCounts)
    notes_on_counts: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def layers(self) -> tuple[int, ...] | None:
        """Numbers of the routed layers, in order."""
        return None if self.routed is None else tuple(sorted(self.routed))

    def find_top_k(self, *, because: str) -> int:
        """Return the one top-k of all layers, for a format that can't be read without it.

        Args:
            because: Why it is needed, as a relative clause.

        Raises:
            InputError: The layers of the model have different ones.
            UsageError: It isn't given.
        """
        known = {k for _, k in (self.routed or {}).values() if k is not None}
        if len(known) > 1:
            raise InputError(
                f"The layers of {printable(self.model)} choose different numbers of experts: "
                f"{', '.join(map(str, sorted(known)))}.",
                hint="Give --layers and --top-k instead of --model, for one of them at a time.",
            )
        given = self.top_k or next(iter(known), None)
        if given is None:
            raise UsageError(
                f"Files of this format don't state how many experts a token gets, which {because}.",
                hint=MODEL_HINT.format(options="--top-k"),
            )
        return given

    def state_top_k(self, facts: Facts, layer: int) -> int | None:
        """Return the top-k of a decoder layer: as given, or as the files state it.

        Raises:
            InputError: The files and the user contradict each other.
        """
        given = self.top_k
        if given is None and self.routed is not None and layer in self.routed:
            given = self.routed[layer][1]
        if given is not None and facts.top_k is not None and given != facts.top_k:
            raise contradiction("top-k", given, facts.top_k)
        return given if given is not None else facts.top_k

    @property
    def any_num_experts(self) -> int | None:
        """The number of experts that all routed layers have; None if unknown, or if they differ."""
        sizes = {size for size, _ in (self.routed or {}).values()}
        return self.num_experts or (sizes.pop() if len(sizes) == 1 else None)

    def find_num_experts(self, facts: Facts, layer: int) -> int | None:
        """Return the number of experts of a decoder layer: as given, or as the files state it.

        Raises:
            InputError: The files and the user contradict each other.
        """
        given = self.num_experts
        if given is None and self.routed is not None and layer in self.routed:
            given = self.routed[layer][0]
        if given is not None and facts.num_experts is not None and given != facts.num_experts:
            raise contradiction("experts", given, facts.num_experts)
        return given if given is not None else facts.num_experts

    def check_routed(self, layer: int) -> None:
        """Check that a layer in the files is one of those that route.

        Raises:
            InputError: It isn't.
        """
        if self.routed is not None and layer not in self.routed:
            where = "--layers" if self.model is None else printable(self.model)
            raise InputError(
                f"The files hold decisions of layer {layer}, which is not a routed layer of "
                f"{where}.",
                hint="Name the model that was recorded, or correct --layers.",
            )


def make_shapes(
    *,
    layers: Collection[int] | None,
    num_layers: int | None,
    num_experts: int | None,
    top_k: int | None,
    of_model: GivenShapes | None = None,
) -> GivenShapes:
    """Return shapes given by hand, or those of a model after a check that both agree.

    Raises:
        UsageError: They contradict each other.
    """
    if num_experts is not None and top_k is not None and top_k > num_experts:
        raise UsageError(
            f"--top-k says {top_k}, but --num-experts says {num_experts}.",
            hint="Give the number of experts per token.",
        )
    if of_model is None:
        if layers is not None and num_layers is not None and max(layers) >= num_layers:
            raise UsageError(
                f"--layers names layer {max(layers)}, but --num-layers says {num_layers}.",
                hint="Layers count from 0.",
            )
        routed = None if layers is None else dict.fromkeys(layers, (num_experts, top_k))
        return GivenShapes(
            routed=routed, num_layers=num_layers, num_experts=num_experts, top_k=top_k
        )
    shapes = (of_model.routed or {}).values()
    given: tuple[tuple[str, object, set[object]], ...] = (
        ("--layers", None if layers is None else tuple(sorted(layers)), {of_model.layers}),
        ("--num-layers", num_layers, {of_model.num_layers}),
        ("--num-experts", num_experts, {size for size, _ in shapes}),
        ("--top-k", top_k, {k for _, k in shapes if k is not None} or {top_k}),
    )
    for option, asked, known in given:
        if asked is not None and {asked} != known:
            raise UsageError(
                f"{option} contradicts {printable(of_model.model)}.",
                hint="Leave the option out, or leave out --model.",
            )
    return of_model


def contradiction(what: str, given: int, found: int) -> InputError:
    """Return the error for a number that the files and the user state differently."""
    noun = "top-k" if what == "top-k" else "number of experts"
    return InputError(
        f"The files state a {noun} of {found}, but {given} was given.",
        hint="Name the model that was recorded, or leave the option out.",
    )
