"""Trace a model from Python, with the checks of `moetool route-trace`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moetool.checkpoint.reference import ModelReference
from moetool.choices import take_count, take_flag, take_path
from moetool.errors import UsageError
from moetool.library.given_models import find_reference, refuse_loading, take_pair
from moetool.library.trace import Trace
from moetool.library.trace_gguf import make_gguf_trace
from moetool.quantizing.choice import choose_quantization
from moetool.trace.metadata import TraceMetadata
from moetool.trace.writing.fileless import KeptTrace
from moetool.trace.writing.identity import RunIdentity
from moetool.trace.writing.sink_choice import SinkChoice, choose_sink
from moetool.trace.writing.writer import TraceSink
from moetool.tracing import trace_model as tracing
from moetool.tracing.llama_cpp.choice import GgufOptions, choose_llama_cpp
from moetool.tracing.options import GenerationOptions, TraceOptions, choose_generation
from moetool.tracing.plans import ParallelPlan
from moetool.tracing.prompts.files import PromptFields
from moetool.tracing.prompts.given import take_prompts
from moetool.tracing.prompts.limits import PromptLimits
from moetool.tracing.prompts.tokens import choose_special_tokens
from moetool.tracing.running.texts import choose_texts

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MOST_PROMPTS = 1_000_000


def trace_model(
    model: str | PathLike[str] | ModelReference | tuple[PreTrainedModel, PreTrainedTokenizerBase],
    prompts: str | PathLike[str] | Iterable[str | Mapping[str, Any]] | pd.DataFrame,
    *,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    resume: bool = False,
    limit: int | None = None,
    limit_per_domain: int | None = None,
    chat: bool = False,
    special_tokens: bool = True,
    max_prompt_tokens: int | None = None,
    id_field: str = "id",
    text_field: str = "text",
    domain_field: str = "domain",
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | None = None,
    quantization: str | None = None,
    double_quant: bool = False,
    quantize_experts: bool = True,
    parallel: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    layers: Collection[int] | None = None,
    probabilities: bool = False,
    saliency: bool = False,
    allow_inexact: bool = False,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = GenerationOptions.seed,
    cache: str = GenerationOptions.cache,
    save_text: str | PathLike[str] | None = None,
    n_gpu_layers: int | None = None,
    threads: int | None = None,
    ctx_size: int | None = None,
    ubatch_size: int | None = None,
    cache_type_k: str | None = None,
    cache_type_v: str | None = None,
    flash_attn: str | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Trace:
    """Record which experts each token of some prompts goes to, as `moetool route-trace` does.

    Rows are kept in memory, about 40 bytes each, unless an output is named. A note on what can't be
    traced exactly is a Python warning, and in the metadata.

    Args:
        model: A folder, a Hub id or `demo`; a GGUF file, which llama.cpp runs; or a model of
            transformers with its tokenizer, both in memory.
        prompts: Texts; a DataFrame, or dicts, with `text` and perhaps `domain` and `id`; or the
            path of a file or folder of prompts.
        output: A .parquet or .csv file that takes the rows.
        overwrite: Replace files that exist.
        resume: Go on where an interrupted run with this output and these arguments ended.
        limit: Trace only the first prompts.
        limit_per_domain: Trace only the first prompts of each domain.
        chat: Apply the tokenizer's chat template to each prompt: a text is a user's message, and
            `messages` are a conversation.
        special_tokens: Let the tokenizer add special tokens.
        max_prompt_tokens: Truncate prompts to this length.
        id_field: The column of the prompts' ids.
        text_field: The column of their texts.
        domain_field: The column of their domains.
        batch_size: Most prompts that go through the model together. By default 8, or no limit with
            `max_batch_tokens`.
        max_batch_tokens: Most tokens that go through the model together, pads and new tokens
            included; a longer prompt runs alone.
        dtype: Convert the weights to it; None keeps the checkpoint's own.
        device: Device to run on; None takes a GPU if there is one.
        device_map: Spreads the model over several devices instead: `auto`, or a JSON file.
        quantization: Quantize weights while they load: `nf4`, `fp4` or `int8`.
        double_quant: Quantize the scales of 4-bit weights too.
        quantize_experts: Quantize routed experts too, or linear layers only.
        parallel: Shares the model among the processes that torchrun started, each of which calls
            this function: `tensor` or `expert`. Takes an output. The first returns the trace, the others one without rows.
        revision: Branch, tag or commit, for Hub ids.
        trust_remote_code: Run Python code from the model's repository if it needs it.
        layers: Record only these layer numbers.
        probabilities: Record the routers' probabilities as well.
        saliency: Run each chosen expert once more, and write the norms of their outputs to
            `<output>.saliency.pt`, as REAP's observer does. Takes an output.
        allow_inexact: Trace models whose experts do not carry out the recorded decisions exactly.
        max_new_tokens: Continue each prompt by at most this many tokens, and record these too.
        temperature: Sample with it; None takes the most likely token.
        top_p: Sample among the most likely tokens that together have this probability.
        seed: Random seed of the sampling.
        cache: transformers' cache for generating, `dynamic` or `static`.
        save_text: A JSONL file that takes the generated texts.
        n_gpu_layers: Of a GGUF file, layers on the GPU, the head counted as one; None for all.
        threads: Of a GGUF file, threads of the CPU; None for one for each CPU.
        ctx_size: Of a GGUF file, tokens of the cache; None for as many as the longest prompt needs.
        ubatch_size: Of a GGUF file, tokens that are evaluated together; None for 512.
        cache_type_k: Of a GGUF file, the type of cached keys; None for `f16`.
        cache_type_v: Of a GGUF file, the type of cached values; None for `f16`.
        flash_attn: Of a GGUF file, flash attention: `on`, `off` or `auto`; None for `auto`.
        on_progress: Receives a few words on each step.

    Raises:
        MoetoolError: The same as the command ends with.
    """
    overwrite = take_flag(overwrite, name="overwrite")
    resume = take_flag(resume, name="resume")
    chat = take_flag(chat, name="chat")
    special_tokens = take_flag(special_tokens, name="special_tokens")
    limit = take_count(
        limit, name="limit of prompts", smallest=1, largest=_MOST_PROMPTS, is_optional=True
    )
    limit_per_domain = take_count(
        limit_per_domain,
        name="limit of prompts of a domain",
        smallest=1,
        largest=_MOST_PROMPTS,
        is_optional=True,
    )
    loaded = take_pair(model)
    if loaded is not None:
        refuse_loading(
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantization=quantization,
            parallel=parallel,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    options = TraceOptions(
        revision=revision,
        trust_remote_code=trust_remote_code,
        dtype=None if dtype == "auto" else dtype,
        device=device,
        device_map=device_map,
        quantization=choose_quantization(
            quantization, double_quantization=double_quant, quantize_experts=quantize_experts
        ),
        parallel=cast("ParallelPlan | None", parallel),
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        layers=cast("frozenset[int] | None", layers),
        special_tokens=choose_special_tokens(chat=chat, special_tokens=special_tokens),
        max_prompt_tokens=max_prompt_tokens,
        with_probabilities=probabilities,
        with_saliency=saliency,
        allow_inexact=allow_inexact,
        generation=choose_generation(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            cache=cache,
        ),
    )
    reference = None if loaded is not None else find_reference(model)
    of_llama_cpp = choose_llama_cpp(
        reference,
        GgufOptions(
            n_gpu_layers, threads, ctx_size, ubatch_size, cache_type_k, cache_type_v, flash_attn
        ),
        options,
        {"--resume": resume, "--save-text": save_text},
    )
    if saliency and output is None:
        raise UsageError(
            "Saliency is written next to the trace, so the trace must go to a file.",
            hint="Name an output: output='trace.parquet'.",
        )
    if resume and output is None:
        raise UsageError(
            "Only a run that writes to a file can be resumed.",
            hint="Name the output of the interrupted run: output='trace.parquet'.",
        )
    if parallel is not None and output is None:
        raise UsageError(
            "The first of the processes that share a model writes the trace, so it must go to a "
            "file.",
            hint="Name an output: output='trace.parquet'.",
        )
    place = _Place(
        output,
        overwrite=overwrite,
        resume=resume,
        with_probabilities=probabilities,
        with_saliency=saliency,
    )
    open_texts = choose_texts(
        None if save_text is None else take_path(save_text, name="file of texts"),
        generation=options.generation,
        output=place.target,
        replace_existing=overwrite,
        resume=resume,
    )
    fields = PromptFields(prompt_id=id_field, text=text_field, domain=domain_field)
    read = take_prompts(
        prompts, fields=fields, limits=PromptLimits(limit, limit_per_domain), chat=chat
    )
    observer = _Listener(on_progress or (lambda _: None))
    if of_llama_cpp is not None:
        assert reference is not None
        assert reference.path is not None
        observer.step("running llama.cpp")
        return make_gguf_trace(
            reference.path, read, place.target, options=of_llama_cpp, overwrite=overwrite
        )
    if loaded is not None:
        run = tracing.trace_loaded_model(
            *loaded, read, options, place=place, observer=observer, open_texts=open_texts
        )
    else:
        assert reference is not None
        run = tracing.trace_model(
            reference,
            read,
            options,
            place=place,
            observer=observer,
            open_texts=open_texts,
        )
    return Trace(
        metadata=run.metadata,
        num_rows=run.num_rows,
        counts=run.counts,
        path=place.target if run.metadata.complete else None,
        tables=tuple(place.kept.tables) if place.kept else (),
        probabilities=tuple(place.kept.probabilities) if place.kept else (),
        timings=run.timings,
    )


class _Place:
    """The place of the rows: a file, or memory.

    Attributes:
        target: The file; None for memory.
        kept: The rows in memory, once there are some.
    """

    def __init__(
        self,
        output: str | PathLike[str] | None,
        *,
        overwrite: bool,
        resume: bool,
        with_probabilities: bool,
        with_saliency: bool,
    ) -> None:
        self.target: Path | None = None
        self.kept: KeptTrace | None = None
        self._file: SinkChoice | None = None
        if output is not None:
            self._file = choose_sink(
                # Absolute, because the command takes "-" for stdout.
                take_path(output, name="output").absolute(),
                replace_existing=overwrite,
                resume=resume,
                with_probabilities=with_probabilities,
                with_saliency=with_saliency,
            )
            self.target = self._file.target

    def check(self, identity: RunIdentity) -> None:
        """Refuse a run that can't go on with what is there."""
        if self._file is not None:
            self._file.check(identity)

    def open(self, metadata: TraceMetadata, identity: RunIdentity) -> TraceSink:
        """Return the sink of the rows."""
        if self._file is not None:
            return self._file.open(metadata, identity)
        self.kept = KeptTrace(metadata)
        return self.kept


class _Listener:
    """Passes the progress of a run to a function, and warnings to Python's."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._num_tokens = 0
        self._num_done = 0

    def announce(self, line: str) -> None:
        """Say what is about to happen."""
        self._say(line)

    def step(self, words: str) -> None:
        """Say what is happening now."""
        self._say(words)

    def warn(self, line: str) -> None:
        """Warn the caller of `trace_model`."""
        warnings.warn(line, UserWarning, stacklevel=5)

    def count(self, num_done: int, num_all: int, unit: str) -> None:
        """Say nothing: the step itself has been announced."""

    def start(self, num_tokens: int) -> None:
        """Begin a run of at most this many tokens."""
        self._num_tokens = num_tokens

    def advance(self, num_tokens: int) -> None:
        """Say how many tokens went through the model."""
        self._num_done += num_tokens
        self._say(f"{self._num_done:,} of {self._num_tokens:,} tokens")
