"""Show one model: facts, where its parameters are, and notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moetool.report.inspect.layers import render_layers
from moetool.report.inspect.words import (
    word_active,
    word_experts,
    word_layers,
    word_mixer,
    word_published,
    word_routing,
)
from moetool.report.text.lines import LABEL, list_fact, list_notes, make_printable
from moetool.report.text.numbers import format_bytes, format_count, format_number_of
from moetool.report.text.tables import WIDTH, render_bar, render_table
from moetool.report.text.words import UNKNOWN, word_count, word_share

if TYPE_CHECKING:
    from moetool.anatomy.skeleton.description import Anatomy
    from moetool.inspection.result import (
        Files,
        Flops,
        Inspection,
        Parameters,
        PublishedFigures,
    )

_BAR = 20
# Widths of a rounded number and of the exact one after it.
_ROUNDED, _EXACT = 8, 19

_SOURCES = {
    "skeleton": "its configuration",
    "headers": "the headers of its files",
    "skeleton and headers": "its configuration, and the headers of its files",
    "reported": "reports only",
}


def render_model(model: Inspection, *, per_layer: bool) -> str:
    """Return everything known about one model, 80 columns wide."""
    blocks = [
        "\n".join(_list_facts(model)),
        *([_render_components(model.parameters)] if model.parameters else []),
        *([render_layers(model)] if per_layer and model.rows else []),
        *([_render_differences(model.files)] if model.files and model.files.differences else []),
        "\n".join(list_notes(model.notes)),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _list_facts(model: Inspection) -> Iterator[str]:
    named = f" ({model.anatomy.model_class})" if model.anatomy else ""
    commit = f" at {model.revision[:8]}" if model.revision else ""
    yield from list_fact("model", f"{model.model}{commit}{named}")
    yield from list_fact("source", _SOURCES[model.source.value])
    if model.reported:
        yield from list_fact("total", f"{model.reported.total or UNKNOWN}, reported")
        yield from list_fact("active", f"{model.reported.active or UNKNOWN}, reported")
        yield from list_fact("experts", f"{model.reported.experts or UNKNOWN}, reported")
        yield from list_fact("reported by", model.reported.source)
    if model.parameters:
        yield from _list_totals(model.parameters)
    if model.published:
        yield from _list_published(model.published)
    if model.num_layers is not None:
        yield from list_fact("layers", word_layers(model))
        yield from list_fact("experts", word_experts(model))
    yield from _list_several("routing", word_routing(model))
    if model.anatomy:
        yield from _list_several("mixer", [word_mixer(mixer) for mixer in model.anatomy.mixers])
        yield from list_fact("context", _word_context(model.anatomy, model.parameters))
    if model.parameters and model.parameters.num_bytes is not None and model.dtype:
        size = format_bytes(model.parameters.num_bytes)
        label = "dequantized" if model.quantization else "as loaded"
        yield from list_fact(label, f"{size} in {model.dtype}")
    if model.files:
        yield from list_fact("on disk", _word_files(model.files))
    if model.quantization:
        yield from list_fact("quantized", model.quantization)
    if model.flops:
        yield from _list_flops(model.flops)


def _list_totals(parameters: Parameters) -> Iterator[str]:
    total = parameters.total
    yield from _list_count("total", word_count(total), total)
    for number, (name, active) in enumerate(parameters.active.items()):
        words = name.value.replace("_", " ")
        if number == 0 and parameters.sparsity is not None:
            words += f": {word_share(parameters.sparsity)} of the total"
        yield from _list_count(
            "" if number else "active",
            word_active(active),
            active.exact if active else None,
            words,
        )


def _list_count(label: str, rounded: str, exact: int | None, words: str = "") -> Iterator[str]:
    number = "" if exact is None else f"{exact:,}"
    columns = f"{rounded:<{_ROUNDED}}{number:>{_ROUNDED + _EXACT - max(_ROUNDED, len(rounded))}}"
    line = f"{label:<{LABEL}}{columns}   {words}".rstrip()
    if len(line) <= WIDTH:
        yield line
    else:
        yield from list_fact(label, f"{rounded} {number} {words}")


def _list_published(published: PublishedFigures) -> Iterator[str]:
    words = word_published(published)
    if words:
        yield from list_fact("vendor", words)
    if published.note:
        yield from list_fact("" if words else "vendor", published.note)


def _word_context(anatomy: Anatomy, parameters: Parameters | None) -> str:
    words = [f"{anatomy.context_length:,} tokens" if anatomy.context_length else UNKNOWN]
    words.append(f"vocabulary {f'{anatomy.vocab_size:,}' if anatomy.vocab_size else UNKNOWN}")
    if parameters and parameters.is_tied is not None:
        words.append("tied embeddings" if parameters.is_tied else "untied embeddings")
    return ", ".join(words)


def _word_files(files: Files) -> str:
    number = format_number_of(files.num_files, "file")
    words = f"{format_bytes(files.num_bytes)} in {number}, {files.num_tensors:,} tensors"
    dtypes = [f"{format_bytes(size)} {dtype}" for dtype, size in files.dtype_bytes.items()]
    return f"{words}: {', '.join(dtypes)}" if dtypes else words


def _list_flops(flops: Flops) -> Iterator[str]:
    def word(number: float | None, ratio: float | None, *, tokens: str = "") -> str:
        if number is None:
            return UNKNOWN
        words = f"{format_count(number)} FLOPs per token{tokens}"
        return words if ratio is None else f"{words}, {word_share(ratio)} of a dense model's"

    prompt = f" (of {flops.num_prompt_tokens:,})"
    yield from list_fact("prefill", word(flops.prefill, flops.prefill_ratio, tokens=prompt))
    yield from list_fact("decode", word(flops.decode, flops.decode_ratio))


def _list_several(label: str, facts: list[str]) -> Iterator[str]:
    for number, words in enumerate(facts):
        yield from list_fact("" if number else label, words)


def _render_components(parameters: Parameters) -> str:
    total = parameters.total
    rows = [
        (
            name.replace("_", " "),
            word_count(number),
            word_share(number / total) if total and number is not None else "",
            render_bar(number / total, width=_BAR) if total and number is not None else "",
            word_active(parameters.active_components[name]),
        )
        for name, number in parameters.components.items()
        if number != 0
    ]
    if not rows:
        return ""
    return render_table(
        ("component", "parameters", "share", "of the total", "active"), rows, right=(1, 2, 4)
    )


def _render_differences(files: Files) -> str:
    rows = [
        (
            make_printable(difference.what),
            f"{difference.file_params:,}",
            f"{difference.params:,}",
            "" if difference.file_bytes is None else format_bytes(difference.file_bytes),
        )
        for difference in files.differences or ()
    ]
    return render_table(
        ("files and model differ in", "in files", "in model", "bytes"), rows, right=(1, 2, 3)
    )
