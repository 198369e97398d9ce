"""The whole payload of a page, with as much detail as its size allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moetool.analysis.sampling.changes import find_changed_tokens
from moetool.analysis.sampling.result import PromptSample
from moetool.report.page.contents import PageContents
from moetool.report.page.payload.alignment import align, place_of
from moetool.report.page.payload.capacity import (
    make_capacity,
    make_counts,
    make_placements,
    make_touched,
)
from moetool.report.page.payload.comparison import make_comparison
from moetool.report.page.payload.domains import make_domains, make_specialization
from moetool.report.page.payload.experts import make_togetherness, make_tokens
from moetool.report.page.payload.layers import list_layers, make_layers, make_load
from moetool.report.page.payload.provenance import make_notes, make_provenance
from moetool.report.page.payload.reading import make_sample
from moetool.report.page.payload.values.names import show_model, show_name, show_path, show_sentence
from moetool.report.page.payload.verdict import make_tiles, make_verdict
from moetool.trace.facts import LayerFacts
from moetool.wording import number_of

SCHEMA = "moetool.page/1"


@dataclass(frozen=True)
class Detail:
    """Limits of the lists of a page.

    Attributes:
        most_tokens: Characteristic tokens of an expert.
        most_partners: Partners of an expert.
        most_pairs: Pairs of a layer.
        has_all_intervals: Lifts that may be chance have intervals, too.
        has_all_lifts: Lifts that may be chance are shown.
    """

    most_tokens: int
    most_partners: int
    most_pairs: int
    has_all_intervals: bool
    has_all_lifts: bool = True


# From the most to the least.
DETAILS = (
    Detail(10, 5, 20, True),
    Detail(6, 5, 20, False),
    Detail(3, 3, 10, False),
    Detail(1, 1, 10, False),
    Detail(1, 1, 5, False, has_all_lifts=False),
    Detail(0, 0, 5, False, has_all_lifts=False),
)


def make_payload(contents: PageContents, detail: Detail) -> dict[str, Any]:
    """Return the values that the page's scripts read, all plain."""
    layers = list_layers(contents)
    sample, tokens = contents.sample, contents.token_specialization
    return {
        "schema": SCHEMA,
        "title": make_title(contents),
        "subtitle": make_subtitle(contents),
        "by": contents.by,
        "verdict": make_verdict(contents),
        "tiles": make_tiles(contents, layers),
        "layers": make_layers(layers),
        "domains": make_domains(contents.specialization),
        "load": make_load(contents.balance),
        "specialization": make_specialization(
            contents.specialization,
            layers,
            has_all_intervals=detail.has_all_intervals,
            has_all_lifts=detail.has_all_lifts,
        ),
        "tokens": make_tokens(
            None if contents.redacts_text else tokens, layers, most_tokens=detail.most_tokens
        ),
        "togetherness": make_togetherness(
            contents.coactivation,
            layers,
            most_partners=detail.most_partners,
            most_pairs=detail.most_pairs,
        ),
        "capacity": make_capacity(contents.balance),
        "placements": make_placements(contents.placements),
        "touched": make_touched(contents.caching),
        "counts": make_counts(contents.metadata),
        "comparison": make_comparison(contents.comparison, layers),
        "sample": make_sample(sample, layers, redacts_text=contents.redacts_text)
        if sample
        else None,
        "changed": _make_changed(contents, layers),
        "start": find_start(contents, layers),
        "provenance": make_provenance(contents),
        "notes": make_notes(contents),
        "missing": {name: show_sentence(reason) for name, reason in contents.missing.items()},
        "left_out": list_left_out(contents, detail),
    }


def _make_changed(contents: PageContents, layers: Sequence[LayerFacts]) -> list[list[list[int]]]:
    """Return, for each layer, lists of a changed token and the experts of the other trace."""
    sample, other = contents.sample, contents.other_sample
    if sample is None or other is None or not other.has_tokens_of(sample):
        return []
    changed = zip(sample.layers, find_changed_tokens(sample, other), strict=True)
    by_place = (((each.layer.stack, each.layer.layer), tokens) for each, tokens in changed)
    return [
        [[token, *experts] for token, experts in (tokens or {}).items()]
        for tokens in align(layers, by_place)
    ]


def find_start(contents: PageContents, layers: Sequence[LayerFacts]) -> dict[str, int]:
    """Return the layer and the prompt that a page opens with: those of the largest difference."""
    strongest = contents.specialization.strongest if contents.specialization else None
    prompts = contents.sample.prompts if contents.sample else ()
    if strongest is None:
        return {"layer": 0, "prompt": 0}
    places = [place_of(layer) for layer in layers]
    place = (strongest.stack, strongest.layer)
    return {
        "layer": places.index(place) if place in places else 0,
        "prompt": next(
            (at for at, each in enumerate(prompts) if each.domain == strongest.domain), 0
        ),
    }


def make_subtitle(contents: PageContents) -> list[str]:
    """Return what identifies the trace in few words: its file, dtype and quantization."""
    metadata = contents.metadata
    parts = [
        show_path(contents.facts.trace),
        metadata.dtype if metadata else None,
        metadata.quantization if metadata else None,
    ]
    return [show_name(part) for part in parts if part]


def make_title(contents: PageContents) -> str:
    """Return what the page is about: the model, else the file."""
    facts = contents.facts
    return show_model(facts.model) or show_path(facts.trace) or "a trace"


def list_left_out(contents: PageContents, detail: Detail) -> list[str]:
    """Return what the page does not show for want of room, or as asked, as sentences."""
    sentences = []
    sample = contents.sample
    if sample is not None and not sample.is_complete:
        sentences.append(_say_sampled(sample))
    if contents.redacts_text:
        sentences.append(
            "Texts of prompts and tokens, ids of prompts and the trace's own notes were left out, as "
            "asked for."
        )
    if not detail.has_all_lifts:
        sentences.append("Lifts that may be chance are not shown.")
    elif not detail.has_all_intervals:
        sentences.append("Lifts that may be chance are shown without their intervals.")
    if not detail.most_tokens:
        sentences.append("Characteristic tokens and partners of experts are not shown.")
    elif detail != DETAILS[0]:
        sentences.append(
            f"Experts have at most {number_of(detail.most_tokens, 'characteristic token')} and "
            f"{number_of(detail.most_partners, 'partner')} here."
        )
    return sentences


def _say_sampled(sample: PromptSample) -> str:
    trace = sample.trace
    tokens = f"{sample.num_tokens:,} of {trace.num_tokens:,} tokens"
    if any(prompt.num_left_out for prompt in sample.prompts):
        where = "the beginning of the shortest prompt"
        return (
            f"Single tokens are those of {where} ({tokens}); all other figures are of all tokens."
        )
    return (
        f"Single tokens are those of {len(sample.prompts):,} of {trace.num_prompts:,} prompts "
        f"({tokens}), chosen by their ids from each {sample.by} in turn; all other figures are of "
        "the whole trace."
    )
