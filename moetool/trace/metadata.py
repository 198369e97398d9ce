"""Metadata of a trace: how it was made, and whether it is complete."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from moetool.errors import InputError
from moetool.plain import make_plain, show_fields
from moetool.printable import printable
from moetool.trace.metadata_fields import (
    LARGEST_ID,
    MOST_IDS,
    FieldError,
    Reader,
    as_amount,
    as_count,
    as_flag,
    as_list,
    as_number,
    as_object,
    as_text,
    as_text_by_name,
    as_texts,
    load_object,
    or_none,
    read_fields,
)
from moetool.trace.model_counts import ModelCounts
from moetool.trace.routing import Routing, join_routing
from moetool.trace.schema import SCHEMA_VERSION

# The key in a Parquet footer; next to a CSV, the same JSON is in `<file>.meta.json`.
FOOTER_KEY = b"moetool"
# pandas keeps the `attrs` of a DataFrame under this key, as one JSON object.
_PANDAS_KEY = b"PANDAS_ATTRS"
# The key of the metadata in these `attrs`.
ATTRS_KEY = "moetool"

# The fields of the metadata that are those of `ModelCounts`.
COUNTS_OF_MODEL = tuple(each.name for each in fields(ModelCounts))

# The beginning of a note that says why the trace is not exact.
NOT_EXACT = "Not exact:"


@dataclass(frozen=True)
class RoutedLayer:
    """One routed layer of the traced model.

    Attributes:
        stack: As in the trace's column.
        layer: As in the trace's column.
        module: Module path of the experts.
        router: Module path of the router; None if no module returned the decision.
        num_experts: Routed experts; ids from here on are identity experts.
        num_identity_experts: Experts that return their input unchanged.
        top_k: Experts chosen per decision, at most.
        rule: How its decisions were read.
        output_factor: Factor by which the block multiplies the sum of its experts afterwards; it is
            not part of the weights. None if the block does more than multiply, or if unknown.
        routing: A value of `Routing`; None where only the decisions are known. Under
            `expert_choice` a decision has as many experts as chose the token, from 0 to `top_k`.
        min_rows: Rows of a decision, at least, where its number of experts varies: each has as many
            as the tokens of some prompts needed. None if all have `top_k` rows.
    """

    stack: str
    layer: int
    module: str
    router: str | None
    num_experts: int
    num_identity_experts: int
    top_k: int
    rule: str | None = None
    output_factor: float | None = None
    routing: str | None = None
    min_rows: int | None = None

    @property
    def fewest_rows(self) -> int:
        """Rows of a decision, at least."""
        return self.top_k if self.min_rows is None else min(self.min_rows, self.top_k)

    @property
    def is_varied(self) -> bool:
        """Whether decisions are known to have different numbers of experts."""
        return self.min_rows is not None or self.is_chosen_by_experts

    @property
    def is_chosen_by_experts(self) -> bool:
        """Whether experts choose tokens."""
        return self.routing == Routing.EXPERT_CHOICE

    def join(self, other: RoutedLayer) -> RoutedLayer:
        """Return what two runs of the same layer show together."""
        top_k = max(self.top_k, other.top_k)
        fewest = min(self.fewest_rows, other.fewest_rows)
        return replace(
            self,
            top_k=top_k,
            routing=join_routing(self.routing, other.routing),
            min_rows=fewest if fewest < top_k else None,
        )


@dataclass(frozen=True)
class TraceMetadata:
    """Facts about how a trace was made, in plain JSON; None means unknown or not applicable.

    The sizes of the model, from `total_parameters` to `dense_flops_per_token`, are those of
    `ModelCounts`.

    Attributes:
        complete: Whether the run finished.
        exact: Whether every decision is the one that the experts carried out.
        rank_order: Whether rank orders a decision's assignments by weight. Otherwise there is no
            rank, or it is the order of an engine's kernel, and first choices are unknown.
        imported_from: Foreign format that the trace was imported from, as `moetool import` names
            it.
        model: As the user named it.
        revision: Commit hash on the Hub.
        quantization: The format of quantized weights, such as `nf4`, or its method as the checkpoint
            states it.
        quantized_expert_bytes: Bytes of routed experts that were quantized while loading; None if
            nothing was.
        quantized_linear_bytes: Bytes of linear layers that were.
        unquantized_bytes: Bytes of all other parameters then.
        special_tokens: The source of the prompts' special tokens: `tokenizer`, `none` or `chat template`.
        prompts_sha256: Hash of every prompt's id, domain and text, in order.
        num_new_tokens: Generated tokens; the last of each prompt was never routed.
        max_new_tokens: As requested; 0 if prompts were only read.
        temperature: For sampling; None if the most likely token was taken.
        top_p: For sampling.
        seed: For sampling.
        cache: `dynamic` or `static`, in generation.
        device_map: As requested, if the model was spread over devices.
        parallel: transformers' plan, `tensor` or `expert`, if processes shared the model.
        parallel_size: Number of these processes.
        batch_size: Most prompts of a batch; None if only its tokens had a limit.
        max_batch_tokens: Most tokens of a batch, pads included; None if there was no limit. Prompts
            in other batches have other rounding errors.
        score_function: Function that turned router scores into probabilities, if recorded.
        notes: Sentences that a reader of the trace should know.
    """

    schema: str = f"moetool.trace/{SCHEMA_VERSION}"
    moetool: str = ""
    complete: bool = False
    exact: bool = True
    rank_order: bool = True
    imported_from: str | None = None
    model: str | None = None
    revision: str | None = None
    model_type: str | None = None
    auto_class: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    quantized_expert_bytes: int | None = None
    quantized_linear_bytes: int | None = None
    unquantized_bytes: int | None = None
    device: str | None = None
    device_map: str | None = None
    parallel: str | None = None
    parallel_size: int | None = None
    attention_implementation: str | None = None
    experts_implementation: str | None = None
    total_parameters: int | None = None
    active_parameters: int | None = None
    flops_per_token: float | None = None
    flops_prompt_tokens: int | None = None
    dense_flops_per_token: float | None = None
    layers: tuple[RoutedLayer, ...] = ()
    num_prompts: int = 0
    num_tokens: int = 0
    num_decisions: int = 0
    num_cut_prompts: int = 0
    num_new_tokens: int = 0
    max_new_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    cache: str | None = None
    special_tokens: str | None = None
    max_prompt_tokens: int | None = None
    batch_size: int | None = None
    max_batch_tokens: int | None = None
    prompts_sha256: str | None = None
    score_function: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    __repr__ = show_fields

    @property
    def model_counts(self) -> ModelCounts:
        """The parameters of the traced model, and the FLOPs of a token."""
        return ModelCounts(**{name: getattr(self, name) for name in COUNTS_OF_MODEL})

    def to_dict(self) -> dict[str, Any]:
        """Return the metadata as an object of plain values, as it is stored."""
        plain: dict[str, Any] = make_plain(self)
        return plain

    def to_json(self) -> str:
        """Return the metadata as one JSON object."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=1)

    def to_footer(self) -> dict[bytes, bytes]:
        """Return the metadata as entries of a Parquet file: for moetool, and for pandas' `attrs`."""
        return {
            FOOTER_KEY: self.to_json().encode(errors="backslashreplace"),
            _PANDAS_KEY: json.dumps({ATTRS_KEY: self.to_dict()}).encode(),
        }


def parse_metadata(text: str | bytes, *, source: str) -> TraceMetadata:
    """Return the metadata in a JSON text, without keys that this version does not know.

    Args:
        text: One JSON object.
        source: File that the text belongs to, for error messages.

    Raises:
        InputError: The text is not metadata, a field has a wrong type or is out of range, or the
            schema is newer.
    """
    try:
        values = load_object(text)
        schema = _read_schema(values)
        found = read_fields(values, _READERS)
        if "layers" in values:
            found["layers"] = _read_layers(values["layers"])
        _check_active(found)
    except FieldError as error:
        raise InputError(
            f"The moetool metadata of '{printable(source)}' can't be read: {error}.",
            hint="Trace again, or remove the metadata to read the table alone.",
        ) from error
    if schema > SCHEMA_VERSION:
        raise InputError(
            f"'{printable(source)}' was written by a newer moetool "
            f"({printable(values['schema'], max_length=40)}).",
            hint="Upgrade: pip install --upgrade moetool.",
        )
    return TraceMetadata(**found)


def _read_schema(values: Mapping[str, Any]) -> int:
    prefix = "moetool.trace/"
    schema = values.get("schema")
    if isinstance(schema, str) and schema.startswith(prefix):
        version = schema.removeprefix(prefix)
        if version.isascii() and version.isdecimal() and len(version) < _MOST_VERSION_DIGITS:
            return int(version)
    seen = "missing" if schema is None else printable(repr(schema)[:100], max_length=60)
    raise FieldError(f"schema is {seen}, not {prefix}{SCHEMA_VERSION}")


def _check_active(found: Mapping[str, Any]) -> None:
    total, active = found.get("total_parameters"), found.get("active_parameters")
    if total is not None and active is not None and active > total:
        raise FieldError(f"active_parameters is {active:,}, but the model has {total:,} parameters")


def _read_layers(value: Any) -> tuple[RoutedLayer, ...]:
    layers: dict[tuple[str, int], RoutedLayer] = {}
    for index, item in enumerate(as_list(value, name="layers")):
        layer = _read_layer(item, name=f"layers[{index}]")
        if (layer.stack, layer.layer) in layers:
            place = f"layer {layer.layer} of {printable(layer.stack, max_length=40)}"
            raise FieldError(f"layers describes {place} twice")
        layers[layer.stack, layer.layer] = layer
    return tuple(layers.values())


def _read_layer(value: Any, *, name: str) -> RoutedLayer:
    values = as_object(value, name=name)
    missing = [key for key in _LAYER_READERS if key not in values and key not in _OPTIONAL]
    if missing:
        raise FieldError(f"{name} has no {missing[0]}")
    layer = RoutedLayer(**read_fields(values, _LAYER_READERS, within=f"{name}."))
    num_ids = layer.num_experts + layer.num_identity_experts
    if num_ids > MOST_IDS:
        raise FieldError(f"{name} has {num_ids:,} experts, more than {MOST_IDS:,}")
    if layer.top_k > num_ids:
        raise FieldError(f"{name}.top_k is {layer.top_k:,}, but it has {num_ids:,} experts")
    return layer


# Far more digits than a version has, and few enough for int.
_MOST_VERSION_DIGITS = 10
_OPTIONAL = ("rule", "output_factor", "routing", "min_rows")

_LAYER_READERS: Mapping[str, Reader] = {
    "stack": as_text,
    "layer": as_count(0, LARGEST_ID),
    "module": as_text,
    "router": or_none(as_text),
    "num_experts": as_count(1, MOST_IDS),
    "num_identity_experts": as_count(0, MOST_IDS),
    "top_k": as_count(1, MOST_IDS),
    "rule": or_none(as_text),
    "output_factor": or_none(as_number),
    "routing": or_none(as_text),
    "min_rows": or_none(as_count(1, MOST_IDS)),
}

_READERS: Mapping[str, Reader] = {
    "schema": as_text,
    "moetool": as_text,
    "complete": as_flag,
    "exact": as_flag,
    "rank_order": as_flag,
    **dict.fromkeys(
        (
            *("model", "revision", "model_type", "auto_class", "dtype", "quantization", "device"),
            *("device_map", "parallel", "attention_implementation", "experts_implementation"),
            "cache",
            *("special_tokens", "prompts_sha256", "score_function", "imported_from"),
        ),
        or_none(as_text),
    ),
    **dict.fromkeys(
        (
            *("num_prompts", "num_tokens", "num_decisions", "num_cut_prompts", "num_new_tokens"),
            "max_new_tokens",
        ),
        as_count(),
    ),
    "total_parameters": or_none(as_count()),
    "active_parameters": or_none(as_count()),
    **dict.fromkeys(
        ("quantized_expert_bytes", "quantized_linear_bytes", "unquantized_bytes"),
        or_none(as_count()),
    ),
    "flops_per_token": or_none(as_amount),
    "flops_prompt_tokens": or_none(as_count(1)),
    "dense_flops_per_token": or_none(as_amount),
    "temperature": or_none(as_number),
    "top_p": or_none(as_number),
    "seed": or_none(as_count(-(2**63), 2**64 - 1)),
    "parallel_size": or_none(as_count(1)),
    **dict.fromkeys(("max_prompt_tokens", "batch_size", "max_batch_tokens"), or_none(as_count(1))),
    "versions": as_text_by_name,
    "notes": as_texts,
}
