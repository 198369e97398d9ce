"""Traces of models that generate text, and the text of a plain call of `generate`."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from moetool import RoutingRecorder
from moetool.trace.metadata import TraceMetadata
from moetool.trace.schema import TRACE_SCHEMA
from moetool.trace.writing.fileless import KeptTrace
from moetool.tracing.options import GenerationOptions, TraceOptions
from moetool.tracing.prompts.prompts import Prompt
from moetool.tracing.prompts.tokens import TokenizedPrompt
from moetool.tracing.run import TracedRun, trace_prompts
from moetool.tracing.running.texts import WrittenText

KEY = ["prompt_id", "stack", "layer", "position", "rank"]
NUM_NEW_TOKENS = 6
# Unordered, with a repeated length, and with a single token.
LENGTHS = (3, 9, 5, 9, 1, 7, 4, 6)

# Batch sizes with caches.
BATCHES = [(1, "dynamic"), (3, "dynamic"), (3, "static"), (8, "dynamic")]
# Token at which the tiny models end a text.
END = 2

_WORDS = [field.name for field in TRACE_SCHEMA if pa.types.is_dictionary(field.type)]


class NumberTokenizer:
    """Spells token 7 as `7`, and a text as the numbers of its tokens."""

    def __init__(self, *, pad_token_id: int | None = 0, eos_token_id: int | None = None) -> None:
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(token_id) for token_id in ids]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return " ".join(str(token_id) for token_id in ids)


class KeptRows(KeptTrace):
    """Keeps the rows that are written to it."""

    def __init__(self) -> None:
        super().__init__(TraceMetadata())

    def describe(self, metadata: TraceMetadata) -> None:
        assert not metadata.complete

    def finish(self, metadata: TraceMetadata, saliency: bytes | None = None) -> None:
        assert metadata.complete
        assert saliency is None


class KeptTexts:
    """Keeps the texts that are written to it."""

    def __init__(self) -> None:
        self.texts: list[WrittenText] = []

    def write_lines(self, lines: bytes) -> None:
        self.texts += [WrittenText(**json.loads(line)) for line in lines.splitlines()]


@dataclass(frozen=True)
class Traced:
    """Everything that a run returned.

    Attributes:
        frame: The rows of all windows.
        probabilities: The rows of the routers' probabilities, if they were asked for.
        texts: One per prompt; none if nothing was to be written.
        run: The figures of the run.
        num_windows: The number of tables of rows.
        num_advanced: The number of tokens that were reported as progress.
    """

    frame: pd.DataFrame
    probabilities: pd.DataFrame
    texts: list[WrittenText]
    run: TracedRun
    num_windows: int
    num_advanced: int

    @property
    def continuations(self) -> list[list[int]]:
        """The new token ids after each prompt."""
        return [[int(number) for number in text.text.split()] for text in self.texts]

    @property
    def tokens(self) -> pd.DataFrame:
        """The tokens of the trace, the same for every layer of a stack."""
        columns = ["prompt_id", "stack", "position", "phase", "token_id"]
        tokens = self.frame[columns].drop_duplicates().reset_index(drop=True)
        for _, layer in self.frame[self.frame["rank"] == 0].groupby(["stack", "layer"]):
            own = tokens[tokens["stack"] == layer["stack"].iloc[0]]
            pd.testing.assert_frame_equal(
                layer[columns].reset_index(drop=True), own.reset_index(drop=True)
            )
        return tokens


def make_sequences(
    lengths: Sequence[int] = LENGTHS, *, seed: int = 2, first: int = 3, last: int = 250
) -> list[list[int]]:
    """Return prompts of the given lengths, of ordinary tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(first, last, length).tolist() for length in lengths]


def trace(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    generation: GenerationOptions | None,
    *,
    batch_size: int = 8,
    layers: Collection[int] | None = None,
    with_probabilities: bool = False,
    tokenizer: Any = None,
    num_excerpts: int = 0,
) -> Traced:
    """Trace a model as `moetool route-trace` does, without files."""
    prompts = [
        TokenizedPrompt(
            prompt=Prompt(prompt_id=str(number), domain="prose", text="…", origin=f"a:{number}"),
            token_ids=np.array(sequence, dtype=np.int32),
            was_cut=False,
        )
        for number, sequence in enumerate(sequences)
    ]
    rows, texts, advanced = KeptRows(), KeptTexts(), [0]
    kept_texts: Any = texts
    spells: Any = tokenizer or NumberTokenizer()
    run = trace_prompts(
        model,
        spells,
        prompts,
        TraceOptions(
            batch_size=batch_size,
            layers=None if layers is None else frozenset(layers),
            with_probabilities=with_probabilities,
            allow_inexact=True,
            generation=generation,
        ),
        sink=rows,
        metadata=TraceMetadata(),
        texts=None if generation is None else kept_texts,
        advance=advanced.append,
        num_excerpts=num_excerpts,
    )
    return Traced(
        frame=_as_plain(rows.tables),
        probabilities=_as_plain(rows.probabilities),
        texts=texts.texts,
        run=run,
        num_windows=len(rows.tables),
        num_advanced=sum(advanced),
    )


def trace_writing(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    tokenizer: Any = None,
    max_new_tokens: int = NUM_NEW_TOKENS,
    **options: Any,
) -> Traced:
    """Trace a model that continues its prompts; `options` are those of `GenerationOptions`."""
    generation = GenerationOptions(max_new_tokens=max_new_tokens, **options)
    return trace(model, sequences, generation, batch_size=batch_size, tokenizer=tokenizer)


def generate_plainly(
    model: PreTrainedModel,
    sequence: Sequence[int],
    *,
    max_new_tokens: int = NUM_NEW_TOKENS,
    **options: Any,
) -> list[int]:
    """Return what a plain call of `generate` writes after a single prompt, greedily."""
    generate: Any = model.generate
    output = generate(
        input_ids=torch.tensor([sequence]),
        attention_mask=torch.ones(1, len(sequence), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **options},
    )
    num_given = 1 if model.config.is_encoder_decoder else len(sequence)
    written: list[int] = output[0, num_given:].tolist()
    return written


def read_plainly(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    *,
    decoded: Sequence[Sequence[int]] | None = None,
) -> pd.DataFrame:
    """Return what the recorder sees of sequences read singly, without pads, mask or cache.

    Args:
        sequences: The tokens that the model reads; in an encoder-decoder, those of its encoder.
        decoded: The tokens of the decoder, for each sequence.
    """
    frames = []
    for number, sequence in enumerate(sequences):
        inputs = {"input_ids": torch.tensor([sequence])}
        if decoded is not None:
            inputs["decoder_input_ids"] = torch.tensor([decoded[number]])
        with RoutingRecorder(model, allow_inexact=True) as recorder, torch.inference_mode():
            model(**inputs, use_cache=False)
        frames.append(recorder.to_frame().assign(prompt_id=str(number)))
    return pd.concat(frames, ignore_index=True)


def assert_same_decisions(
    frame: pd.DataFrame, expected: pd.DataFrame, *, tolerance: float = 1e-5
) -> None:
    """Check that two frames have the same rows: experts exactly, weights up to a tolerance."""
    ordered, other = (one.sort_values(KEY).reset_index(drop=True) for one in (frame, expected))
    exact = [*KEY, "expert"]
    pd.testing.assert_frame_equal(ordered[exact], other[exact], check_dtype=False)
    np.testing.assert_allclose(ordered["weight"], other["weight"], rtol=0, atol=tolerance)


def expect_tokens(
    given: list[int], written: list[int], *, prompt_id: str, stack: str
) -> pd.DataFrame:
    """Return the tokens that a stack routes for one prompt: all except the last new one."""
    ids = [*given, *written[:-1]]
    return pd.DataFrame(
        {
            "prompt_id": prompt_id,
            "stack": stack,
            "position": range(len(ids)),
            "phase": ["prefill"] * len(given) + ["decode"] * (len(ids) - len(given)),
            "token_id": ids,
        }
    )


def cut_after(ids: list[int], ends: set[int]) -> list[int]:
    at = next((index for index, token_id in enumerate(ids) if token_id in ends), len(ids))
    return ids[: at + 1]


def choose_ends(written: list[list[int]]) -> set[int]:
    """Return tokens that end some rows, one of them at its first token, but not all."""
    ends = {END, written[1][2], written[4][0]}
    lengths = [len(cut_after(ids, ends)) for ids in written]
    assert min(lengths) == 1
    assert max(lengths) == NUM_NEW_TOKENS
    assert len(set(lengths)) > 2
    return ends


def _as_plain(tables: list[pa.Table]) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame()
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    words = {name: "str" for name in _WORDS if name in frame}
    return frame.astype(words)
