"""Show one model: facts, where its parameters are, and notes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from moetool.printable import printable
from moetool.report.inspect.gguf import make_types
from moetool.report.inspect.layers import list_layers
from moetool.report.inspect.words import (
    word_active,
    word_experts,
    word_layers,
    word_mixer,
    word_published,
    word_routing,
    word_sources,
)
from moetool.report.renderer import View
from moetool.report.text.lines import Paragraph, make_fact, make_facts, make_notes
from moetool.report.text.page import Block
from moetool.report.text.styles import Style, style_words
from moetool.report.text.tables import Bar, make_table
from moetool.report.text.words import UNKNOWN, word_count, word_share
from moetool.wording import format_bytes, format_count, number_of

if TYPE_CHECKING:
    from moetool.inspection.figures import Adapter, Files, Flops, Parameters, PublishedFigures
    from moetool.inspection.result import Inspection

# Widths of a rounded number and of the exact one after it.
_ROUNDED, _EXACT = 8, 19

_SOURCES = {
    "skeleton": "its configuration",
    "headers": "the headers of its files",
    "skeleton and headers": "its configuration, and the headers of its files",
    "reported": "reports only",
    "modules": "its modules in memory",
}


def list_blocks(model: Inspection, view: View) -> Iterator[Block]:
    """Yield everything known about one model."""
    yield list(_list_facts(model))
    if model.parameters:
        yield _list_components(model.parameters)
    if view.per_layer and model.rows:
        yield list_layers(model, is_folded=view.width is not None)
    if model.gguf and len(model.gguf.types) > 1:
        yield [make_types(model.gguf)]
    if model.files and model.files.differences:
        yield [_make_differences(model.files)]
    yield make_notes(model.notes)


def _list_facts(model: Inspection) -> Iterator[Paragraph]:
    named = f" ({model.anatomy.model_class})" if model.anatomy else ""
    if model.gguf and not model.anatomy:
        named = f" (GGUF architecture {model.gguf.architecture})"
    commit = f" at {model.revision[:8]}" if model.revision else ""
    title = style_words(model.model, Style.STRONG)
    yield make_fact("model", title.append(printable(f"{commit}{named}")))
    yield make_fact("source", _SOURCES[model.source.value])
    if model.layout:
        yield make_fact("format", model.layout)
    if model.adapter:
        yield from _list_adapter(model.adapter)
    if model.reported:
        yield make_fact("total", f"{model.reported.total or UNKNOWN}, reported")
        yield make_fact("active", f"{model.reported.active or UNKNOWN}, reported")
        yield make_fact("experts", f"{model.reported.experts or UNKNOWN}, reported")
        yield make_fact("reported by", model.reported.source)
    if model.parameters:
        yield from _list_totals(model.parameters)
    if model.published:
        yield from _list_published(model.published)
    if model.num_layers is not None:
        yield make_fact("layers", word_layers(model))
        yield make_fact("experts", word_experts(model))
    if model.expert_sources:
        yield from make_facts("merged from", word_sources(model.expert_sources))
    yield from make_facts("routing", word_routing(model))
    if model.anatomy:
        yield from make_facts("mixer", map(word_mixer, model.anatomy.mixers))
    if model.anatomy or model.gguf:
        yield make_fact("context", _word_context(model))
    if model.parameters and model.parameters.num_bytes is not None and model.dtype:
        size = format_bytes(model.parameters.num_bytes)
        label = "dequantized" if model.quantization else "as loaded"
        yield make_fact(label, f"{size} in {model.dtype}")
    if model.files:
        yield make_fact("on disk", _word_files(model.files))
    if model.quantization:
        bits = model.bits_per_weight
        rounded = "" if bits is None else f"; {bits:.2f} bits per weight, scales included"
        yield make_fact("quantized", f"{model.quantization}{rounded}")
    if model.flops:
        yield from _list_flops(model.flops)


def _list_totals(parameters: Parameters) -> Iterator[Paragraph]:
    total = parameters.total
    yield _make_count("total", word_count(total), total)
    for number, (name, active) in enumerate(parameters.active.items()):
        words = name.value.replace("_", " ")
        if number == 0 and parameters.sparsity is not None:
            words += f": {word_share(parameters.sparsity)} of the total"
        yield _make_count(
            "" if number else "active",
            word_active(active),
            active.exact if active else None,
            words,
        )


def _list_adapter(adapter: Adapter) -> Iterator[Paragraph]:
    rank = "" if adapter.rank is None else f" of rank {adapter.rank}"
    base = UNKNOWN if adapter.base is None else printable(adapter.base)
    yield make_fact("method", f"{printable(adapter.method or UNKNOWN)}{rank}")
    yield make_fact("base", f"{base}{_word_both(adapter.base_params, adapter.base_active_params)}")
    if adapter.params is not None:
        both = _word_both(adapter.params, adapter.active_params)
        yield make_fact("together", both.removeprefix(": "))


def _word_both(total: int | None, active: int | None) -> str:
    if total is None:
        return ""
    return f": {total:,} in total, {UNKNOWN if active is None else f'{active:,}'} active"


def _make_count(label: str, rounded: str, exact: int | None, words: str = "") -> Paragraph:
    number = "" if exact is None else f"{exact:,}"
    width = _ROUNDED + _EXACT - max(_ROUNDED, len(rounded))
    columns = (style_words(rounded, Style.STRONG), " " * (_ROUNDED - len(rounded)))
    return make_fact(label, Text.assemble(*columns, f"{number:>{width}}   {words}"))


def _list_published(published: PublishedFigures) -> Iterator[Paragraph]:
    words = word_published(published)
    if words:
        yield make_fact("vendor", words)
    if published.note:
        yield make_fact("" if words else "vendor", published.note)


def _word_context(model: Inspection) -> str:
    context, vocabulary = model.context_length, model.vocab_size
    words = [f"{context:,} tokens" if context else UNKNOWN]
    words.append(f"vocabulary {f'{vocabulary:,}' if vocabulary else UNKNOWN}")
    if model.parameters and model.parameters.is_tied is not None:
        words.append("tied embeddings" if model.parameters.is_tied else "untied embeddings")
    return ", ".join(words)


def _word_files(files: Files) -> str:
    number = number_of(files.num_files, "file")
    words = f"{format_bytes(files.num_bytes)} in {number}, {files.num_tensors:,} tensors"
    dtypes = [f"{format_bytes(size)} {dtype}" for dtype, size in files.dtype_bytes.items()]
    return f"{words}: {', '.join(dtypes)}" if dtypes else words


def _list_flops(flops: Flops) -> Iterator[Paragraph]:
    def word(number: float | None, ratio: float | None, *, tokens: str = "") -> str:
        if number is None:
            return UNKNOWN
        words = f"{format_count(number)} FLOPs per token{tokens}"
        return words if ratio is None else f"{words}, {word_share(ratio)} of a dense model's"

    prompt = f" (of {flops.num_prompt_tokens:,})"
    yield make_fact("prefill", word(flops.prefill, flops.prefill_ratio, tokens=prompt))
    yield make_fact("decode", word(flops.decode, flops.decode_ratio))


def _list_components(parameters: Parameters) -> Block:
    total = parameters.total
    rows = [
        (
            name.replace("_", " "),
            word_count(number),
            word_share(number / total) if total and number is not None else "",
            Bar(number / total) if total and number is not None else "",
            word_active(parameters.active_components[name]),
        )
        for name, number in parameters.components.items()
        if number != 0
    ]
    headers = ("component", "parameters", "share", "of the total", "active")
    return [make_table(headers, rows, right=(1, 2, 4))] if rows else []


def _make_differences(files: Files) -> Table:
    rows = [
        (
            difference.what,
            f"{difference.file_params:,}",
            f"{difference.params:,}",
            "" if difference.file_bytes is None else format_bytes(difference.file_bytes),
        )
        for difference in files.differences or ()
    ]
    return make_table(
        ("files and model differ in", "in files", "in model", "bytes"), rows, right=(1, 2, 3)
    )
