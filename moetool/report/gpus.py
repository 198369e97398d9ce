"""Render the known GPUs as a table, JSON or CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import render_page
from moetool.report.text.styles import Style
from moetool.report.text.tables import make_table
from moetool.wording import format_bytes, number_of

if TYPE_CHECKING:
    from moetool.catalogue.gpus import Gpu

_NOT_GIVEN = "A figure is null where the source doesn't give it or the GPU has no such operation."
_LEGEND = (
    "memory: as the driver reports it; * as advertised. bf16 and fp8: peaks of dense matrices, in "
    "TFLOPS. Each name is one for `moetool memory-estimate --gpu`, as is an amount such as 24GiB."
)
_OF_TPUS = "tpu: one chip; only weights, cache and bounds on time are estimated for it."
_COLUMNS = (
    "id",
    "title",
    "vendor",
    "architecture",
    "compute_capability",
    "memory_bytes",
    "memory_is",
    "bandwidth_bytes_per_s",
    "bf16_flops_per_s",
    "fp16_flops_per_s",
    "fp8_flops_per_s",
    "pcie_bytes_per_s",
    "aliases",
    "source",
    "notes",
)


def render_table_text(gpus: Sequence[Gpu], view: View = DEFAULT_VIEW) -> str:
    """Return a row for each GPU, and how to read the figures."""
    table = make_table(
        ("name", "memory", "GB/s", "bf16", "fp8", "architecture", "vendor"),
        [
            (
                gpu.id,
                f"{format_bytes(gpu.memory_bytes)}{'*' if gpu.memory_is == 'nominal' else ''}",
                _scale(gpu.bandwidth_bytes_per_s, 1e9),
                _scale(gpu.bf16_flops_per_s, 1e12),
                _scale(gpu.fp8_flops_per_s, 1e12),
                gpu.architecture or "–",
                gpu.vendor or "–",
            )
            for gpu in gpus
        ],
        right=(1, 2, 3, 4),
    )
    closing = [
        *make_paragraphs([f"{_word_number(gpus)}."]),
        *make_paragraphs([_LEGEND, *_list_remarks(gpus)], Style.MUTED),
    ]
    return render_page(([table], closing), view)


def _word_number(gpus: Sequence[Gpu]) -> str:
    kinds = {
        kind: [gpu for gpu in gpus if gpu.is_tpu == (kind == "TPU")] for kind in ("GPU", "TPU")
    }
    words = [number_of(len(each), kind) for kind, each in kinds.items() if each]
    return " and ".join(words or [number_of(0, "GPU")])


def _list_remarks(gpus: Sequence[Gpu]) -> list[str]:
    return [_OF_TPUS] if any(gpu.is_tpu for gpu in gpus) else []


def render_json(gpus: Sequence[Gpu], _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, with all names of each GPU."""
    entries = [{name: asdict(gpu)[name] for name in _COLUMNS} for gpu in gpus]
    return envelope.render_json("moetool.gpus/1", {"gpus": entries, "notes": [_NOT_GIVEN]})


def render_csv(gpus: Sequence[Gpu], _: View = DEFAULT_VIEW) -> str:
    """Return one row for each GPU, with its further names in one cell."""
    rows = [{**asdict(gpu), "aliases": ";".join(gpu.aliases)} for gpu in gpus]
    return envelope.render_csv(rows, _COLUMNS)


RENDERERS: Renderers[Sequence[Gpu]] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}


def _scale(number: float | None, unit: float) -> str:
    return "–" if number is None else f"{number / unit:,.0f}"
