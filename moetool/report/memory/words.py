"""What a model needs for a scenario, in sentences and words that fit a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from moetool.report.text.lines import wrap_words
from moetool.report.text.numbers import format_bytes
from moetool.report.text.tables import WIDTH

if TYPE_CHECKING:
    from moetool.memory.figures import Peak, StoredWeights
    from moetool.memory.on_gpus import Fit, Limits
    from moetool.memory.result import Estimate
    from moetool.memory.scenario import Scenario

UNKNOWN = "unknown"

_LABEL = 12
_GIB = 2**30

_METHODS = {
    "simulated": "simulated: the model's own code, run without data, every allocation followed",
    "approximate": "approximate: simulated, under an assumption that is noted below",
    "measured": "measured on a GPU",
    "reported": "reported, not computed",
}


def list_fact(label: str, words: str) -> list[str]:
    """Return the lines of a fact, its label in front of the first."""
    lines = wrap_words(words, width=WIDTH - _LABEL)
    return [f"{'' if number else label:<{_LABEL}}{line}" for number, line in enumerate(lines)]


def word_size(num_bytes: int | None) -> str:
    """Return bytes with a binary unit, or that they are unknown."""
    return UNKNOWN if num_bytes is None else format_bytes(num_bytes)


def word_change(num_bytes: int) -> str:
    """Return bytes with a binary unit and a sign: `+1.5 MiB`, `-512 bytes`."""
    sign = "-" if num_bytes < 0 else "+"
    return f"{sign if num_bytes else ''}{format_bytes(abs(num_bytes))}"


def word_fit(fit: Fit | None) -> str:
    """Return whether it fits on one GPU, with the GiB left on it: `yes +51.5`, `no -64.9`.

    Never `no -0.0`: what is missing, or left, is at least `0.01`.
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
    """Return a GPU with its memory: `rtx-4090 (24.0 GiB)`."""
    return f"{fit.gpu} ({format_bytes(fit.memory_bytes)})"


def word_seconds(seconds: float | None) -> str:
    """Return a time with its unit: `830 µs`, `27.2 ms`, `1.5 s`."""
    if seconds is None:
        return UNKNOWN
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.99995 else f"{seconds:,.1f} s"


def word_range(numbers: Sequence[int]) -> str:
    """Return numbers as one, or as the least and the most: `7`, `4 to 7`."""
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def word_sizes(sizes: Sequence[int]) -> str:
    """Return sizes as one, or as the least and the most: `10.1 to 19.2 GiB`."""
    least, most = format_bytes(min(sizes)), format_bytes(max(sizes))
    if least == most:
        return least
    number, _, unit = least.partition(" ")
    return f"{number if most.endswith(f' {unit}') else least} to {most}"


def word_run(scenario: Scenario) -> str:
    """Return what is run: `generate: 8 sequences of 2,048 prompt tokens and 256 new ones`."""
    sequences = f"{scenario.batch_size:,} sequence{'' if scenario.batch_size == 1 else 's'}"
    words = f"{scenario.task}: {sequences} of {_count(scenario.num_prompt_tokens, 'prompt token')}"
    if scenario.num_new_tokens:
        words += f" and {_count(scenario.num_new_tokens, 'new one')}"
    return words


def word_weights(scenario: Scenario) -> str:
    """Return how weights are loaded: `in nf4, the rest in bfloat16; …`."""
    dtype = "the configuration's dtype" if scenario.dtype == "auto" else scenario.dtype
    if scenario.quantization == "none":
        return f"in {dtype}"
    double = ", double-quantized" if scenario.is_double_quantized else ""
    experts = (
        "experts as transformers loads them"
        if scenario.experts == "as-loaded"
        else "experts quantized as well"
    )
    return f"in {scenario.quantization}{double}, the rest in {dtype}; {experts}"


def word_options(scenario: Scenario) -> str:
    """Return what was chosen instead of what transformers chooses; empty if nothing was."""
    words = []
    if scenario.attention is not None:
        words.append(f"{scenario.attention} attention")
    if scenario.experts_implementation is not None:
        words.append(f"{scenario.experts_implementation} experts")
    if scenario.cache != "dynamic":
        words.append(f"{scenario.cache} cache")
    if scenario.has_padding:
        words.append("padded prompts")
    return ", ".join(words)


def word_method(method: str) -> str:
    """Return how figures came about, in more than a word."""
    return _METHODS[method]


def word_peak(peak: Peak) -> str:
    """Return what made a peak, and how high it is."""
    place = ", outside of layers" if peak.layer is None else f" of {peak.layer}"
    height = (
        f"{format_bytes(peak.above_weights_bytes)} above its weights"
        if peak.allocated_bytes is None
        else format_bytes(peak.allocated_bytes)
    )
    return f"peaks at {height}: {peak.operation}{place}"


def word_unquantized(estimate: Estimate) -> str:
    """Return in what weights are loaded that bitsandbytes doesn't quantize: `mxfp4`, `unquantized`."""
    stored = estimate.stored
    if stored is None or stored.basis.value == "copy":
        return "unquantized"
    is_dequantized = stored.basis.value == "as-loaded" and stored.is_dequantized
    return "dequantized" if is_dequantized else stored.method.partition(",")[0]


def word_stored(stored: StoredWeights) -> str:
    """Return what a quantized checkpoint takes in its files, as loaded and dequantized."""
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
        tokens = _count(limits.largest_prompt_tokens, "token")
        yield f"prompts of up to {tokens} at this batch size on 1 × {gpu}{whole}"
    if limits.largest_batch_size == 0:
        yield f"no batch fits on 1 × {gpu} at this length"
    else:
        sequences = _count(limits.largest_batch_size, "sequence")
        yield f"batches of up to {sequences} at this length on 1 × {gpu}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
