"""How far experts specialize by domain: as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import asdict

import moetool
from moetool.analysis.lift import find_most_lifted
from moetool.analysis.specialization import Specialization
from moetool.printable import printable
from moetool.report.numbers import format_p_value, format_place
from moetool.report.tables import WIDTH, render_table

_EXPERTS_SHOWN = 3
_ENOUGH_PROMPTS = 20
_LONGEST_NOTE = 2_000


def render_table_text(result: Specialization, *, trace: str) -> str:
    """Return both tables and how to read them."""
    del trace
    layers = render_table(
        ("layer", "MI (nats)", "permuted", "excess", "of H(domain)", "p"),
        [
            (
                f"{'' if layer.stack == 'decoder' else layer.stack + ' '}{layer.layer}",
                f"{layer.mutual_information_nats:.4f}",
                f"{layer.null_nats:.4f}",
                f"{layer.excess_nats:.4f}",
                f"{layer.normalized:.1%}",
                format_p_value(layer.p_value, num_permutations=result.num_permutations),
            )
            for layer in result.layers
        ],
        right=(1, 2, 3, 4, 5),
    )
    ranked = find_most_lifted(result.experts, limit=_EXPERTS_SHOWN)
    domains = render_table(
        ("domain", "prompts", "tokens", "over-represented experts: share of tokens, lift"),
        [
            (
                size.domain,
                f"{size.prompts:,}",
                f"{size.tokens:,}",
                "  ".join(
                    f"{format_place(cell.stack, cell.layer, cell.expert)} {cell.share:.0%} "
                    f"×{cell.lift:.1f}"
                    for cell in ranked[size.domain]
                ),
            )
            for size in result.domains
        ],
        right=(1, 2),
    )
    even = sorted({cell.even_share for cell in result.experts})
    shares = " or ".join(f"{share:.1%}" for share in even)
    notes = [
        "MI: mutual information of expert and domain, over assignments. permuted: its mean "
        f"over {result.num_permutations} permutations of the prompts' labels. excess: the "
        "difference, beside it as a part of the domains' entropy. p: how often a permutation "
        "reaches MI.",
        "share: part of the domain's tokens that the expert gets; even routing gives "
        f"{shares}. lift: that share over the expert's share of all tokens.",
        "A randomly initialised model is significant too: random routers route by vocabulary, "
        "and domains differ in vocabulary. p tells that the routing differs between domains, "
        "not that the model has learned it.",
        *_warn_of_few_prompts(result),
        *result.notes,
    ]
    wrapped = [
        line
        for note in notes
        for line in textwrap.wrap(printable(note, max_length=_LONGEST_NOTE), WIDTH)
    ]
    return "\n".join([layers, "", domains, "", *wrapped, ""])


def render_json(result: Specialization, *, trace: str) -> str:
    """Return everything as one JSON object, numbers unrounded."""
    value = {
        "schema": "moetool.specialize/1",
        "moetool": moetool.__version__,
        "trace": trace,
        "num_permutations": result.num_permutations,
        "seed": result.seed,
        "domains": [asdict(size) for size in result.domains],
        "layers": [asdict(layer) for layer in result.layers],
        "experts": [asdict(cell) for cell in result.experts],
        "notes": [*_warn_of_few_prompts(result), *result.notes],
    }
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def render_csv(result: Specialization, *, trace: str) -> str:
    """Return one row for every domain, layer and expert."""
    del trace
    text = io.StringIO()
    rows = [asdict(cell) for cell in result.experts]
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


RENDERERS: Mapping[str, Callable[..., str]] = {
    "table": render_table_text,
    "json": render_json,
    "csv": render_csv,
}


def _warn_of_few_prompts(result: Specialization) -> list[str]:
    few = [size.domain for size in result.domains if size.prompts < _ENOUGH_PROMPTS]
    if not few:
        return []
    return [f"fewer than {_ENOUGH_PROMPTS} prompts in {', '.join(few)}: p-values are coarse there."]
