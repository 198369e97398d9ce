"""Import responses of SGLang with `return_routed_experts`: base64 of raw int32 numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError, UsageError
from moetool.interchange.imports.engines.responses import (
    LayerRows,
    Names,
    count_phase,
    iter_responses,
    note_model,
)
from moetool.interchange.imports.reading.arrays import decode_base64
from moetool.interchange.imports.reading.text import damaged, take_array, take_integer
from moetool.interchange.imports.runs import Column, Facts, ImportFiles, TokenRun, TraceImport
from moetool.interchange.imports.shapes import MODEL_HINT, GivenShapes
from moetool.wording import number_of

FORMAT = "sglang-routed-experts"


@dataclass(frozen=True)
class _Response:
    source: str
    prompt_id: str
    content: dict[str, Any]
    num_prompt_tokens: int | None
    num_tokens: int | None
    token_id: NDArray[np.int64] | None

    def read_numbers(self) -> NDArray[np.int32]:
        """Return the numbers that the response encodes, without their shape."""
        data = decode_base64(_find_routed(self.content), name="routed_experts", source=self.source)
        if len(data) % 4:
            raise damaged(self.source, "encodes a part of an int32 number as 'routed_experts'")
        return np.frombuffer(data, dtype="<i4")


def has_routed_experts(response: dict[str, Any]) -> bool:
    """Return whether a JSON object is a response of SGLang with routed experts."""
    return isinstance(_find_routed(response), str)


def open_sglang_responses(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in responses of `/generate` or of the OpenAI routes.

    Raises:
        InputError: A file holds something else.
        UsageError: The shape of the numbers is not known.
    """
    facts = Facts(FORMAT)
    top_k = shapes.find_top_k(because="gives their numbers a shape")
    columns: set[Column] = {"rank", "phase", "token_id"}
    for response in _iter_responses(files, facts):
        if response.num_prompt_tokens is None:
            columns.discard("phase")
        if response.token_id is None:
            columns.discard("token_id")
    facts.has_weight_order = False
    facts.note(
        "Weights are not in responses of SGLang; ranks are in the order of its kernel, "
        "which need not be that of weights: first choices are unknown."
    )
    runs = _iter_runs(files, facts, shapes, top_k=top_k, has_ids="token_id" in columns)
    return TraceImport(runs, frozenset(columns), facts)


def _iter_runs(
    files: ImportFiles, facts: Facts, shapes: GivenShapes, *, top_k: int, has_ids: bool
) -> Iterator[TokenRun]:
    rows = LayerRows(shapes, facts)
    num_layers = shapes.num_layers
    for response in _iter_responses(files, facts):
        numbers = response.read_numbers()
        is_stated = num_layers is not None
        num_layers = _find_num_layers(response, len(numbers), num_layers, top_k=top_k)
        if not is_stated:
            facts.note(
                f"{number_of(num_layers, 'layer')}, dense ones included, "
                f"{'is' if num_layers == 1 else 'are'} inferred from the tokens that the first "
                "response states. If the request gave routed_experts_start_len, state the number "
                "with --num-layers or --model."
            )
        array = numbers.reshape(-1, num_layers, top_k)
        num_rows = len(array)
        start = 0
        if response.num_tokens is not None:
            # The last token was not fed to the model, and the first ones may have been left out.
            start = response.num_tokens - 1 - num_rows
            if start < 0:
                raise InputError(
                    f"{response.source} has routed experts of {num_rows} tokens, but only "
                    f"{response.num_tokens - 1} were fed to the model.",
                    hint="Correct --num-layers or --top-k, or name the model that was recorded.",
                )
        position = np.arange(start, start + num_rows)
        yield TokenRun(
            source=response.source,
            prompt_id=response.prompt_id,
            position=position,
            layers=rows.choose(array, source=response.source),
            phase=None
            if response.num_prompt_tokens is None
            else count_phase(position, response.num_prompt_tokens),
            token_id=response.token_id[position]
            if has_ids and response.token_id is not None
            else None,
        )


def _find_num_layers(
    response: _Response, num_numbers: int, num_layers: int | None, *, top_k: int
) -> int:
    """Return the number of layers in a response: as known, or as its number of tokens implies."""
    if num_layers is None:
        if response.num_tokens is None:
            raise UsageError(
                f"{response.source} states no number of tokens, so its layers can't be counted.",
                hint=MODEL_HINT.format(options="--num-layers"),
            )
        num_rows = max(1, response.num_tokens - 1) * top_k
        num_layers = num_numbers // num_rows if num_numbers % num_rows == 0 else 0
    if num_layers < 1 or num_numbers % (num_layers * top_k):
        raise InputError(
            f"{response.source} has {num_numbers} expert ids, which are not those of "
            f"{num_layers or 'any number of'} layers with {top_k} experts per token.",
            hint=MODEL_HINT.format(options="--num-layers and --top-k"),
        )
    return num_layers


def _iter_responses(files: ImportFiles, facts: Facts) -> Iterator[_Response]:
    names = Names()
    for path in files.paths:
        for number, (source, content) in enumerate(iter_responses(path)):
            if not has_routed_experts(content):
                raise damaged(
                    source,
                    "has no routed experts of SGLang",
                    hint="Start SGLang with --enable-return-routed-experts, and ask with "
                    "return_routed_experts.",
                )
            note_model(facts, content.get("model"), source=source)
            meta, usage = (_part(content, name) for name in ("meta_info", "usage"))
            counts = meta if "prompt_tokens" in meta else usage
            num_prompt, num_new = (
                take_integer(counts[name], name=name, source=source) if name in counts else None
                for name in ("prompt_tokens", "completion_tokens")
            )
            name = meta.get("id", content.get("id"))
            yield _Response(
                source=source,
                prompt_id=names.take(
                    name if isinstance(name, str) and name else f"{path.stem}/{number}"
                ),
                content=content,
                num_prompt_tokens=num_prompt,
                num_tokens=None if num_prompt is None or num_new is None else num_prompt + num_new,
                token_id=_find_ids(content, num_prompt, num_new, source=source),
            )


def _find_routed(response: dict[str, Any]) -> Any:
    for name in ("meta_info", "sglext"):
        found = _part(response, name).get("routed_experts")
        if found is not None:
            return found
    return None


def _find_ids(
    content: dict[str, Any], num_prompt: int | None, num_new: int | None, *, source: str
) -> NDArray[np.int64] | None:
    """Return the ids of prompt and answer, if the response has all of them.

    SGLang returns the prompt's ids only with its log probabilities; a request may be saved along
    with the response.
    """
    written = content.get("output_ids")
    logged = _part(content, "meta_info").get("input_token_logprobs")
    prompt = content.get("input_ids")
    if prompt is None and isinstance(logged, list):
        items = [item for item in logged if isinstance(item, list) and len(item) > 1]
        prompt = [item[1] for item in items]
    if not isinstance(written, list) or not isinstance(prompt, list):
        return None
    if (len(prompt), len(written)) != (num_prompt, num_new):
        return None
    return take_array([*prompt, *written], num_dimensions=1, name="output_ids", source=source)


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    part = content.get(name)
    return part if isinstance(part, dict) else {}
