"""What a trace says about itself: how it was made, and whether it is all there."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from moetool.errors import InputError
from moetool.trace.schema import SCHEMA_VERSION

# The key in a Parquet footer; beside a CSV the same JSON is `<file>.meta.json`.
FOOTER_KEY = b"moetool"

# How a note begins that says why the trace is not exact.
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
        output_factor: By what the block multiplies its experts' sum afterwards; the weights do not
            hold it. None if it does more than multiply, or unknown.
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


@dataclass(frozen=True)
class TraceMetadata:
    """How a trace was made. Every field is plain JSON; None means unknown or not applicable.

    Attributes:
        complete: Whether the run reached its end.
        exact: Whether every decision is the one that the experts carried out.
        model: The model as named.
        revision: Commit hash on the Hub.
        special_tokens: `tokenizer`, `none` or `chat template`: who added them to the prompts.
        prompts_sha256: Hash of every prompt's id, domain and text, in order.
        num_new_tokens: Generated tokens; the last of each prompt was never routed.
        max_new_tokens: What was asked for; 0 if prompts were only read.
        temperature: Of sampling; None for the most likely token.
        top_p: Of sampling.
        seed: Of sampling.
        cache: `dynamic` or `static`, in generation.
        device_map: What was asked for, where the model was spread over devices.
        score_function: What turned the router's scores into probabilities, if those were asked for.
        notes: Sentences a reader of the trace should know.
    """

    schema: str = f"moetool.trace/{SCHEMA_VERSION}"
    moetool: str = ""
    complete: bool = False
    exact: bool = True
    model: str | None = None
    revision: str | None = None
    model_type: str | None = None
    auto_class: str | None = None
    dtype: str | None = None
    quantization: str | None = None
    device: str | None = None
    device_map: str | None = None
    attention_implementation: str | None = None
    experts_implementation: str | None = None
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
    prompts_sha256: str | None = None
    score_function: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the metadata as one JSON object."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


def parse_metadata(text: str | bytes, *, source: str) -> TraceMetadata:
    """Return the metadata in a JSON text; keys this version doesn't know are left out.

    Raises:
        InputError: The text is not metadata, or of a newer schema.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        schema = str(raw["schema"])
        version = int(schema.removeprefix("moetool.trace/"))
    except (ValueError, KeyError, TypeError) as error:
        raise _unreadable(source) from error
    if version > SCHEMA_VERSION:
        raise InputError(
            f"'{source}' was written by a newer moetool ({schema}).",
            hint="Upgrade: pip install --upgrade moetool.",
        )
    known = {item.name for item in fields(TraceMetadata)}
    values = {key: value for key, value in raw.items() if key in known}
    layer_keys = {item.name for item in fields(RoutedLayer)}
    try:
        values["layers"] = tuple(
            RoutedLayer(**{key: value for key, value in layer.items() if key in layer_keys})
            for layer in raw.get("layers", ())
        )
        values["notes"] = tuple(raw.get("notes", ()))
        return TraceMetadata(**values)
    except (TypeError, AttributeError) as error:
        raise _unreadable(source) from error


def _unreadable(source: str) -> InputError:
    return InputError(
        f"The moetool metadata of '{source}' can't be read.",
        hint="Trace again, or remove the metadata to read the table alone.",
    )
