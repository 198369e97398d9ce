"""What is known of an inspected model: finished numbers, for any report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.catalogue.published import ReportedSystem

if TYPE_CHECKING:
    from moetool.anatomy.skeleton.description import Anatomy


class Source(StrEnum):
    """Where the figures of a model come from.

    Attributes:
        SKELETON: The model that transformers builds from the configuration.
        HEADERS: The headers of the weight files.
        BOTH: The skeleton, compared with the headers.
        REPORTED: Reports about a system whose configuration is not public.
    """

    SKELETON = "skeleton"
    HEADERS = "headers"
    BOTH = "skeleton and headers"
    REPORTED = "reported"


@dataclass(frozen=True)
class InspectedRow:
    """A component of a layer, as it is loaded and as it lies in the files.

    Attributes:
        stack: As in `ParameterRow`.
        layer: The model's own layer index; None outside layers.
        component: A value of `Component`.
        params: Parameters of the model; None if it builds none of them, or if headers alone can't
            count them.
        active_params: Those that a text token runs; None if that differs between tokens or is
            unknown.
        active_params_min: No token runs fewer; None if unknown.
        active_params_max: No token runs more; None if unknown.
        dtype: In which transformers holds them, those of quantized weights once dequantized; None
            if unknown.
        bytes: At that dtype; None if unknown.
        file_params: Parameters in the files; None without files, or if some can't be counted.
        file_dtype: In which they are stored; None likewise.
        file_bytes: In the files; None likewise.
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
    """How many parameters a model has.

    Attributes:
        total: All of them; None if some in the files can't be counted.
        active: Those that a text token runs, by definition; None where that is unknown.
        components: By component, 0 for those that are absent, None for those of which some in the
            files can't be counted; they sum up to the total.
        active_components: Those that a text token runs, likewise.
        expert_share: Part of the total that is routed experts; None if unknown.
        sparsity: Active (`all`) over total; None if either is no single number.
        num_bytes: In the dtype that transformers holds them in, those of quantized weights once
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


@dataclass(frozen=True)
class Flops:
    """FLOPs per token of one sequence, as transformers' own code computes them.

    Attributes:
        num_prompt_tokens: Length of the prompt.
        prefill: Mean over the prompt's tokens.
        decode: Of the token after it; None for a model that does not generate.
        dense_prefill: Those of the same model if every token ran every routed expert.
        dense_decode: Likewise.
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
    """Something in which the files and the model differ.

    Attributes:
        what: What it is, in words.
        num_tensors: Tensors in the files, where it is about tensors.
        file_params: Parameters in the files, or the elements of what is none.
        params: Parameters in the model.
        file_bytes: Bytes in the files; None if not about tensors of theirs alone.
        example: The name of a tensor, where it is about tensors.
        components: By how many parameters the files exceed the model in each component that it is
            about. What is no parameter, such as scales, is not in it.
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
    """What the weight files hold.

    Attributes:
        num_files: How many there are.
        num_tensors: In all of them.
        num_bytes: Of the files, headers included.
        dtype_bytes: Bytes of tensors by the dtype they are stored in.
        differences: In what they differ from the model; None where there is no model to compare.
    """

    num_files: int
    num_tensors: int
    num_bytes: int
    dtype_bytes: Mapping[str, int]
    differences: tuple[Difference, ...] | None


@dataclass(frozen=True)
class PublishedFigures:
    """What the vendor says, and which definition its figure meets.

    Attributes:
        total_b: Billions of parameters as published; None if it says nothing.
        active_b: Active ones, likewise.
        meets_total: Whether the total rounds or truncates to the published digits; None without.
        meets_active: The definitions under which active parameters do.
        closest_active: The definition that comes closest, where none meets the figure.
        source: Where the vendor says so.
        note: What the vendor says of the definition, and why figures may differ.
    """

    total_b: str | None
    active_b: str | None
    meets_total: bool | None
    meets_active: tuple[ActiveDefinition, ...]
    closest_active: ActiveDefinition | None
    source: str | None
    note: str | None


@dataclass(frozen=True)
class Inspection:
    """One inspected model.

    Attributes:
        model: The name it was asked for by.
        model_type: Of its configuration; None for reported systems.
        source: Where the figures come from.
        revision: The commit on the Hub; None elsewhere.
        num_layers: Layers of all text stacks; None if unknown.
        num_moe_layers: Those of them that route.
        num_experts: Routed experts of a layer: one number, or one for each where they differ.
        top_k: Experts that a token is routed to, likewise; None if unknown.
        num_shared_experts: Experts that every token runs; None if unknown.
        anatomy: What the skeleton tells besides; None without one.
        quantization: How the files are quantized, as config.json says; None if they are not.
        dtype: What transformers converts the weights to; None if unknown.
        parameters: None for reported systems.
        rows: The parameter table.
        flops: None if the forward can't run without data.
        files: None where there are none.
        published: None for models that are not in the catalogue.
        reported: What reports say; None for all others.
        notes: What a reader of the figures should know.
    """

    model: str
    model_type: str | None
    source: Source
    revision: str | None
    num_layers: int | None
    num_moe_layers: int | None
    num_experts: int | tuple[int | None, ...] | None
    top_k: int | tuple[int | None, ...] | None
    num_shared_experts: int | None
    anatomy: Anatomy | None
    quantization: str | None
    dtype: str | None
    parameters: Parameters | None
    rows: tuple[InspectedRow, ...]
    flops: Flops | None
    files: Files | None
    published: PublishedFigures | None
    reported: ReportedSystem | None
    notes: tuple[str, ...]
