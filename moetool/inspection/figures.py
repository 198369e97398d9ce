"""Figures of an inspection: counts of parameters, FLOPs, files, and what a vendor published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.plain import make_plain, show_fields


@dataclass(frozen=True)
class InspectedRow:
    """A component of a layer, as it is loaded and as it lies in the files.

    Attributes:
        stack: As in `ParameterRow`.
        layer: The model's own layer index; None outside layers.
        component: A value of `Component`.
        params: Parameters of the model; None if it has none of them, or if they can't be counted by
            headers alone.
        active_params: Parameters that a text token runs; None if the number is unknown or differs
            between tokens.
        active_params_min: The fewest that a token runs; None if unknown.
        active_params_max: The most that a token runs; None if unknown.
        dtype: The dtype in transformers, for quantized weights once they are dequantized; None if
            unknown.
        bytes: At that dtype; None if unknown.
        file_params: Parameters in the files; None without files, or if some can't be counted.
        file_dtype: The dtype in the files; None without files.
        file_bytes: Bytes in the files; None without files.
    """

    stack: str
    layer: int | None
    component: str
    params: int | None
    active_params: int | None
    active_params_min: int | None
    active_params_max: int | None
    dtype: str | None
    bytes: int | None
    file_params: int | None = None
    file_dtype: str | None = None
    file_bytes: int | None = None


@dataclass(frozen=True)
class Parameters:
    """The numbers of a model's parameters.

    Attributes:
        total: All parameters; None if some in the files can't be counted.
        active: Parameters that a text token runs, by definition; None where that is unknown.
        components: Parameters by component, which add up to the total. 0 for absent components;
            None for those of which some in the files can't be counted.
        active_components: Active parameters by component, in the same form.
        expert_share: Share of routed experts in the total; None if unknown.
        sparsity: Active (`all`) over total; None unless both are single numbers.
        num_bytes: Bytes in the dtypes of transformers, for quantized weights once they are
            dequantized; None if unknown.
        is_tied: Whether the embedding is the head too; None if unknown.
    """

    total: int | None
    active: Mapping[ActiveDefinition, ActiveRange | None]
    components: Mapping[str, int | None]
    active_components: Mapping[str, ActiveRange | None]
    expert_share: float | None
    sparsity: float | None
    num_bytes: int | None
    is_tied: bool | None

    __repr__ = show_fields

    @property
    def params(self) -> int | None:
        """The total, named as in `InspectedRow`."""
        return self.total

    @property
    def active_params(self) -> int | None:
        """Active parameters by the definition `all`; None if unknown or different for each token."""
        return _exact(self.active[ActiveDefinition.ALL])

    @property
    def active_params_min(self) -> int | None:
        """The fewest active parameters of a token; None if unknown."""
        active = self.active[ActiveDefinition.ALL]
        return active.fewest if active else None

    @property
    def active_params_max(self) -> int | None:
        """The most active parameters of a token; None if unknown."""
        active = self.active[ActiveDefinition.ALL]
        return active.most if active else None

    @property
    def active_range(self) -> Mapping[ActiveDefinition, ActiveRange | None]:
        """The same as `active`, named as in the JSON report, whose `active` has single numbers."""
        return self.active

    @property
    def bytes(self) -> int | None:
        """The same as `num_bytes`, named as in `InspectedRow`."""
        return self.num_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the object of the JSON report."""
        return {
            "total": self.total,
            "active": {name.value: _exact(number) for name, number in self.active.items()},
            "components": make_plain(self.components),
            "active_range": make_plain(self.active),
            "active_components": {
                name: _exact(number) for name, number in self.active_components.items()
            },
            "expert_share": self.expert_share,
            "sparsity": self.sparsity,
            "bytes": self.num_bytes,
            "is_tied": self.is_tied,
            "params": self.params,
            "active_params": self.active_params,
            "active_params_min": self.active_params_min,
            "active_params_max": self.active_params_max,
        }


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of one sequence, as transformers' own code computes them.

    Attributes:
        num_prompt_tokens: Length of the prompt.
        prefill: FLOPs of a prompt token, averaged over the prompt.
        decode: FLOPs of the first token after it; None for a model that does not generate.
        dense_prefill: `prefill` of the same model if every token ran every routed expert.
        dense_decode: `decode` of that dense model.
        prefill_ratio: `prefill` over `dense_prefill`.
        decode_ratio: `decode` over `dense_decode`.
    """

    num_prompt_tokens: int
    prefill: float
    decode: float | None
    dense_prefill: float | None
    dense_decode: float | None
    prefill_ratio: float | None
    decode_ratio: float | None


@dataclass(frozen=True)
class Difference:
    """A difference between the files and the model.

    Attributes:
        what: The difference in words.
        num_tensors: Tensors that only the files have; None if it is not about such tensors.
        file_params: Parameters in the files, or elements of tensors that are not parameters.
        params: Parameters in the model.
        file_bytes: Bytes of those tensors; None if it is not about such tensors.
        example: The name of one of them; None if it is not about such tensors.
        components: By component, the number of parameters by which the files exceed the model.
            Tensors that are not parameters, such as scales, are left out.
    """

    what: str
    num_tensors: int | None
    file_params: int
    params: int
    file_bytes: int | None
    example: str | None
    components: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """The contents of the weight files.

    Attributes:
        num_files: Number of files.
        num_tensors: Tensors in all files.
        num_bytes: Bytes of the files, headers included.
        dtype_bytes: Bytes of tensors, by the dtype that they are stored in.
        differences: From the model; None if there is no model to compare with.
    """

    num_files: int
    num_tensors: int
    num_bytes: int
    dtype_bytes: Mapping[str, int]
    differences: tuple[Difference, ...] | None

    __repr__ = show_fields


@dataclass(frozen=True)
class Adapter:
    """An adapter's additions to its base model.

    Attributes:
        method: PEFT's name of the method, such as `LORA`; None if not stated.
        rank: The rank of its matrices; None if not stated.
        base: The base model, as the adapter names it; None if it names none.
        base_params: Parameters of the base model; None if the catalogue does not have it.
        base_active_params: Those that a token runs; None if unknown.
        params: Parameters of both together; None if one of them is unknown.
        active_params: Those that a token runs; None if unknown.
    """

    method: str | None
    rank: int | None
    base: str | None
    base_params: int | None
    base_active_params: int | None
    params: int | None
    active_params: int | None


@dataclass(frozen=True)
class PublishedFigures:
    """The vendor's figures, and the definitions that they meet.

    Attributes:
        total_b: Billions of parameters as published; None if not published.
        active_b: Billions of active parameters as published; None if not published.
        meets_total: Whether the total rounds or truncates to the published digits; None without a
            published total.
        meets_active: The definitions by which active parameters do.
        closest_active: The definition that comes closest, if none meets the figure.
        source: The vendor's document.
        note: The vendor's remarks on its definition, and reasons why figures may differ.
    """

    total_b: str | None
    active_b: str | None
    meets_total: bool | None
    meets_active: tuple[ActiveDefinition, ...]
    closest_active: ActiveDefinition | None
    source: str | None
    note: str | None


def _exact(number: ActiveRange | None) -> int | None:
    return number.exact if number else None
