"""Import `routed_experts` of vLLM: `.npy` files, and responses that hold them in base64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moetool.errors import InputError
from moetool.interchange.imports.engines.responses import (
    LayerRows,
    Names,
    count_phase,
    iter_responses,
    note_model,
)
from moetool.interchange.imports.reading.arrays import NPY_START, decode_base64, parse_npy
from moetool.interchange.imports.reading.text import (
    damaged,
    open_input,
    quote,
    read_whole,
    take_array,
    take_integer,
)
from moetool.interchange.imports.runs import Column, Facts, ImportFiles, TokenRun, TraceImport
from moetool.interchange.imports.shapes import GivenShapes
from moetool.wording import number_of

FORMAT = "vllm"
_OLD, _NEW = "prompt_routed_experts", "routed_experts"


@dataclass(frozen=True)
class _Choice:
    """One answer, or an array on its own.

    Attributes:
        is_old: Whether the arrays hold routed layers only, as those of vLLM 0.21 do.
        ids: Ids of all tokens.
        num_tokens: Prompt and answer.
    """

    source: str
    prompt_id: str
    arrays: tuple[Any, ...]
    is_old: bool = False
    num_prompt_tokens: int | None = None
    num_tokens: int | None = None
    ids: NDArray[np.int64] | None = None

    def read(self) -> NDArray[Any]:
        """Return the expert ids by token, layer and rank."""
        arrays = [_read_array(each, source=self.source) for each in self.arrays]
        if len({array.shape[1:] for array in arrays}) > 1:
            raise damaged(self.source, f"has other layers in {_OLD!r} than in {_NEW!r}")
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def has_routed_experts(response: dict[str, Any]) -> bool:
    """Return whether a JSON object is a response of vLLM with routed experts."""
    choices = response.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and (_NEW in choice or _OLD in choice) for choice in choices
    )


def open_vllm(files: ImportFiles, shapes: GivenShapes) -> TraceImport:
    """Return the decisions in `.npy` files or responses.

    Raises:
        InputError: A file holds something else, or no routed experts.
    """
    facts = Facts(FORMAT)
    columns: set[Column] = {"rank", "phase", "token_id"}
    num_choices = 0
    for choice in _iter_choices(files, facts):
        num_choices += 1
        if choice.num_prompt_tokens is None:
            columns.discard("phase")
        if choice.ids is None:
            columns.discard("token_id")
    if not num_choices:
        raise InputError(
            "No response holds routed experts: each of them is null.",
            hint="Start vLLM with --enable-return-routed-experts.",
        )
    facts.has_weight_order = False
    facts.note(
        "Weights are not in responses of vLLM; ranks are in the order of its kernel, "
        "which need not be that of weights: first choices are unknown."
    )
    return TraceImport(
        _iter_runs(files, facts, shapes, has_ids="token_id" in columns), frozenset(columns), facts
    )


def _iter_runs(
    files: ImportFiles, facts: Facts, shapes: GivenShapes, *, has_ids: bool
) -> Iterator[TokenRun]:
    rows = LayerRows(shapes, facts)
    for choice in _iter_choices(files, facts):
        array = choice.read()
        num_rows = len(array)
        start = 0
        if choice.num_tokens is not None:
            # The last token was not fed to the model; the old layout has a row for it.
            num_fed = choice.num_tokens - (0 if choice.is_old else 1)
            start = 0 if choice.is_old else num_fed - num_rows
            if start < 0 or num_rows > num_fed:
                raise InputError(
                    f"{choice.source} has routed experts of {num_rows} tokens, but only {num_fed} "
                    "were fed to the model.",
                    hint="Check that prompt and answer are those of this response.",
                )
        position = np.arange(start, start + num_rows)
        yield TokenRun(
            source=choice.source,
            prompt_id=choice.prompt_id,
            position=position,
            layers=rows.choose(array, source=choice.source, only_routed=choice.is_old),
            phase=None
            if choice.num_prompt_tokens is None
            else count_phase(position, choice.num_prompt_tokens),
            token_id=choice.ids[position] if has_ids and choice.ids is not None else None,
        )


def _iter_choices(files: ImportFiles, facts: Facts) -> Iterator[_Choice]:
    names = Names()
    for path in files.paths:
        if _is_npy(path):
            yield _Choice(quote(path), names.take(path.stem), (read_whole(path),))
            continue
        num_empty = 0
        for number, (source, response) in enumerate(iter_responses(path)):
            if not has_routed_experts(response):
                raise damaged(source, "has no routed experts of vLLM")
            note_model(facts, response.get("model"), source=source)
            stated = response.get("id")
            name = stated if isinstance(stated, str) and stated else f"{path.stem}/{number}"
            choices = response["choices"]
            for index, choice in enumerate(choices):
                if not isinstance(choice, dict) or choice.get(_NEW) is None:
                    num_empty += 1
                    continue
                yield _read_choice(
                    choice,
                    response,
                    source=source if len(choices) == 1 else f"{source}, choice {index}",
                    prompt_id=names.take(name if len(choices) == 1 else f"{name}/{index}"),
                    is_only=len(choices) == 1,
                )
        if num_empty:
            facts.note(f"{number_of(num_empty, 'choice')} without routed experts were left out.")


def _read_choice(
    choice: dict[str, Any],
    response: dict[str, Any],
    *,
    source: str,
    prompt_id: str,
    is_only: bool,
) -> _Choice:
    old = choice.get(_OLD, response.get(_OLD))
    prompt = choice.get("prompt_token_ids", response.get("prompt_token_ids"))
    written = choice.get("token_ids")
    ids = None
    num_prompt = num_tokens = None
    if prompt is not None:
        prompt = take_array(prompt, num_dimensions=1, name="prompt_token_ids", source=source)
        num_prompt = len(prompt)
        if written is not None:
            written = take_array(written, num_dimensions=1, name="token_ids", source=source)
            ids = np.concatenate([prompt, written])
            num_tokens = len(ids)
    usage = response.get("usage")
    if isinstance(usage, dict) and "prompt_tokens" in usage and num_prompt is None:
        num_prompt = take_integer(usage["prompt_tokens"], name="prompt_tokens", source=source)
        # Of all choices together.
        if is_only and "completion_tokens" in usage:
            name = "completion_tokens"
            num_tokens = num_prompt + take_integer(usage[name], name=name, source=source)
    return _Choice(
        source=source,
        prompt_id=prompt_id,
        arrays=(choice[_NEW],) if old is None else (old, choice[_NEW]),
        is_old=old is not None,
        num_prompt_tokens=num_prompt,
        num_tokens=num_tokens,
        ids=ids,
    )


def _read_array(value: Any, *, source: str) -> NDArray[Any]:
    if isinstance(value, list):
        return take_array(value, num_dimensions=3, name=_NEW, source=source)
    data = value if isinstance(value, bytes) else decode_base64(value, name=_NEW, source=source)
    array = parse_npy(data, source=source)
    if array.ndim != 3 or 0 in array.shape[1:]:
        raise damaged(source, f"has an array of shape {array.shape}, not of tokens, layers, ranks")
    return array


def _is_npy(path: Path) -> bool:
    with open_input(path) as file:
        return file.read(len(NPY_START)) == NPY_START
