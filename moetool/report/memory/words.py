"""Put scenarios, weights, peaks and limits into words that fit on a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moetool.report.text.styles import make_printable
from moetool.report.text.words import UNKNOWN, word_size
from moetool.wording import format_bytes, number_of

if TYPE_CHECKING:
    from moetool.memory.answers.figures import Peak, StoredWeights
    from moetool.memory.answers.on_gpus import Fit, Limits
    from moetool.memory.result import Estimate
    from moetool.memory.scenario import Scenario

_GIB = 2**30
_OWN_DTYPE = "the configuration's dtype"

_VARIANTS = {
    "transformers": "as transformers loads it",
    "experts_quantized": "experts quantized as well",
    "as_published": "packed as published",
    "dequantized": "dequantized",
}
_METHODS = {
    "simulated": "simulated: runs the model's own code without data, following every allocation",
    "approximate": "approximate: simulated, under an assumption that a note above names",
    "measured": "measured on a GPU",
    "reported": "reported, not computed",
}


def word_change(num_bytes: int) -> str:
    """Return bytes with a binary unit and a sign: `+1.5 MiB`, `-512 bytes`."""
    sign = "-" if num_bytes < 0 else "+"
    return f"{sign if num_bytes else ''}{format_bytes(abs(num_bytes))}"


def word_fit(fit: Fit | None) -> str:
    """Return whether it fits on one GPU, with the GiB to spare or missing: `yes +51.5`, `no -64.9`.

    The amount shown is at least `0.01`, so that `no -0.0` never appears.
    """
    if fit is None or fit.fits is None:
        return UNKNOWN
    word = "yes" if fit.fits else "no"
    if fit.headroom_bytes is None:
        return word
    size = abs(fit.headroom_bytes) / _GIB
    shown = f"{size:.1f}" if size >= 0.095 else f"{max(size, 0.01):.2f}"
    return f"{word} {'-' if fit.headroom_bytes < 0 else '+'}{shown}"


def word_gpu(fit: Fit) -> str:
    """Return the GPU of a fit with its memory."""
    return word_card(fit.gpu, fit.memory_bytes)


def word_card(gpu: str, memory_bytes: int) -> str:
    """Return a GPU with its memory: `rtx-4090 (24.0 GiB)`. An amount of memory says that itself."""
    return gpu if gpu[:1].isdecimal() else f"{gpu} ({format_bytes(memory_bytes)})"


def word_smallest(estimate: Estimate) -> str:
    """Return the smallest known GPU that a run fits on, or several of one kind."""
    smallest, fit = estimate.smallest_fit, estimate.fit
    if smallest is not None:
        return smallest.gpu
    if fit is not None and fit.num_gpus is not None and fit.num_gpus > 1:
        return f"{fit.num_gpus} × {fit.gpu}"
    return UNKNOWN if fit is None or fit.fits is None else "none"


def word_seconds(seconds: float | None) -> str:
    """Return a time with its unit: `830 µs`, `27.2 ms`, `1.5 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.99995 else f"{seconds:,.1f} s"


def word_sizes(sizes: Sequence[int]) -> str:
    """Return sizes as one if they look equal, else as the range they span: `10.1 to 19.2 GiB`."""
    least, most = format_bytes(min(sizes)), format_bytes(max(sizes))
    if least == most:
        return least
    number, _, unit = least.partition(" ")
    return f"{number if most.endswith(f' {unit}') else least} to {most}"


def word_run(scenario: Scenario) -> str:
    """Return what runs: `generate: 8 sequences of 2,048 prompt tokens and 256 new ones`."""
    sequences = number_of(scenario.batch_size, "sequence")
    prompt = number_of(scenario.num_prompt_tokens, "prompt token")
    words = f"{scenario.task}: {sequences} of {prompt}"
    if scenario.num_new_tokens:
        words += f" and {number_of(scenario.num_new_tokens, 'new one')}"
    if scenario.num_beams > 1:
        words += f", {scenario.num_beams} beams each"
    if scenario.num_return_sequences > 1:
        words += f", {scenario.num_return_sequences} sequences returned"
    return words


def word_weights(estimate: Estimate) -> str:
    """Return how weights are loaded: `in nf4, the rest in bfloat16; …`."""
    scenario, stored = estimate.scenario, estimate.stored
    if (
        scenario.quantization == "none"
        and stored is not None
        and word_unquantized(estimate) not in ("unquantized", "dequantized")
    ):
        dtype = scenario.dtype if scenario.dtype != "auto" else estimate.loaded_dtype
        return f"in {word_unquantized(estimate)}, the rest in {dtype or _OWN_DTYPE}"
    return word_loading(scenario, own_dtype=estimate.loaded_dtype)


def word_loading(scenario: Scenario, *, own_dtype: str | None = None) -> str:
    """Return how weights are loaded that are not stored quantized.

    Args:
        own_dtype: The dtype of the configuration; None for several models, or if unknown.
    """
    dtype = scenario.dtype if scenario.dtype != "auto" else own_dtype
    if scenario.quantization == "none":
        own = f", {_OWN_DTYPE}" if scenario.dtype == "auto" and dtype else ""
        return f"in {dtype or _OWN_DTYPE}{own}"
    double = ", double-quantized" if scenario.is_double_quantized else ""
    experts = (
        "experts as transformers loads them"
        if scenario.experts == "as-loaded"
        else "experts quantized as well"
    )
    return f"in {scenario.quantization}{double}, the rest in {dtype or _OWN_DTYPE}; {experts}"


def word_storage(estimate: Estimate) -> str:
    """Return how most weights are stored, in a word or two: `bfloat16`, `mxfp4`, `nf4 with experts`."""
    scenario = estimate.scenario
    if scenario.quantization != "none":
        has_experts = scenario.experts != "as-loaded"
        return f"{scenario.quantization}{' with experts' if has_experts else ''}"
    stored = word_unquantized(estimate)
    if estimate.stored is not None and stored not in ("unquantized", "dequantized"):
        return make_printable(stored)
    dtype = scenario.dtype if scenario.dtype != "auto" else estimate.loaded_dtype
    return dtype or "own dtype"


def word_variant(name: str) -> str:
    """Return how weights are held, from the name of a variant: `packed as published`."""
    return _VARIANTS.get(name, make_printable(name))


def word_options(scenario: Scenario) -> str:
    """Return the options that differ from transformers' defaults; empty if none does."""
    words = []
    if scenario.attention is not None:
        words.append(f"{scenario.attention} attention")
    if scenario.experts_implementation is not None:
        words.append(f"{scenario.experts_implementation} experts")
    if scenario.cache_dtype is not None:
        words.append(f"cache in {scenario.cache_dtype}")
    elif scenario.cache != "dynamic":
        words.append(f"{scenario.cache.replace('_', ' ')} cache")
    if scenario.assistant is not None:
        words.append(f"with {make_printable(scenario.assistant)} as the assistant")
    if scenario.has_padding:
        words.append("padded prompts")
    if scenario.optimizer is not None:
        words.append(scenario.optimizer.value)
    if scenario.has_checkpointing:
        words.append("gradient checkpointing")
    if scenario.frozen != "none":
        words.append(f"{scenario.frozen} frozen")
    if scenario.lora_rank is not None:
        words.append(f"adapters of rank {scenario.lora_rank}")
    if scenario.trained_experts is not None:
        words.append("chosen experts trained")
    return ", ".join(words)


def word_method(method: str) -> str:
    """Return how figures were obtained, in more than a word."""
    return _METHODS[method]


def word_peak(peak: Peak) -> str:
    """Return what caused a peak, and how high it is."""
    place = ", outside layers" if peak.layer is None else f" of {peak.layer}"
    height = (
        f"{format_bytes(peak.above_weights_bytes)} above its weights"
        if peak.allocated_bytes is None
        else format_bytes(peak.allocated_bytes)
    )
    return f"peaks at {height}: {peak.operation}{place}"


def word_unquantized(estimate: Estimate) -> str:
    """Return how weights are stored that bitsandbytes doesn't quantize: `mxfp4`, `unquantized`."""
    stored = estimate.stored
    if stored is None or stored.basis.value == "copy":
        return "unquantized"
    is_dequantized = stored.basis.value == "as-loaded" and stored.is_dequantized
    return "dequantized" if is_dequantized else stored.method.partition(",")[0]


def word_stored(stored: StoredWeights) -> str:
    """Return the size of a quantized checkpoint in its files, as loaded, and dequantized."""
    words = f"{stored.method}: {word_size(stored.stored_bytes)} in its files"
    words += f", {word_size(stored.loaded_bytes)} as loaded"
    if stored.is_dequantized is not None and stored.loaded_bytes is not None:
        words += f", {'dequantized' if stored.is_dequantized else 'still quantized'}"
    others = {
        "packed as published": stored.packed_bytes,
        "dequantized": stored.dequantized_bytes,
    }
    known = [
        f"{format_bytes(num_bytes)} {how}"
        for how, num_bytes in others.items()
        if num_bytes is not None and num_bytes not in (stored.loaded_bytes, stored.stored_bytes)
    ]
    return "; ".join([words, *([", ".join(known)] if known else [])])


def list_limits(limits: Limits, gpu: str) -> Iterator[str]:
    """Yield the longest prompt and the largest batch that fit."""
    if limits.largest_prompt_tokens == 0:
        yield f"no prompt fits on 1 × {gpu} at this batch size"
    else:
        whole = ", the model's whole context" if limits.is_whole_context else ""
        tokens = number_of(limits.largest_prompt_tokens, "token")
        slack = "" if whole else ", to within 1 % or 64 tokens"
        yield f"prompts of {tokens} at this batch size on 1 × {gpu}{whole}{slack}"
    if limits.largest_batch_size == 0:
        yield f"no batch fits on 1 × {gpu} at this length"
    else:
        sequences = number_of(limits.largest_batch_size, "sequence")
        yield f"batches of {sequences} at this length on 1 × {gpu}"
