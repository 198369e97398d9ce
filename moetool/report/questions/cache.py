"""Render the worth of experts kept on the GPU as tables, JSON or CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table

from moetool.analysis.caching.result import (
    ENOUGH_BATCHES,
    Caching,
    PhaseSize,
    PolicyResult,
    Touched,
)
from moetool.printable import printable
from moetool.report import envelope
from moetool.report.renderer import DEFAULT_VIEW, Renderers, ReportFormat, View
from moetool.report.text.lines import make_paragraphs
from moetool.report.text.page import Block, render_page
from moetool.report.text.styles import Style, Words, style_words
from moetool.report.text.tables import Cell, make_table
from moetool.report.text.words import word_share, word_size
from moetool.wording import format_bytes, number_of

# In a column of numbers; a word would widen it.
_UNKNOWN = "–"
_GROUPS_SHOWN = 12
_NAMES = {"static": "static", "lru": "LRU", "lfu": "LFU", "belady": "Belady"}


def render_table_text(result: Caching, view: View = DEFAULT_VIEW) -> str:
    """Return the verdict, a table for each phase, the batch sizes, and how to read them."""
    blocks: tuple[Block, ...] = (
        make_paragraphs(_word_verdict(result)),
        *(_make_phase(result, size) for size in reversed(result.phases)),
        list(_make_groups(result)),
        [_make_touched(result.touched)],
        make_paragraphs(result.notes, Style.WARNING),
        make_paragraphs(_make_legend(result), Style.MUTED),
    )
    return render_page(blocks, view)


def _word_verdict(result: Caching) -> list[Words]:
    verdict = result.verdict
    if verdict is None:
        return [style_words("No token needs an expert: there is nothing to cache.", Style.STRONG)]
    best, bound = verdict
    assert best.hit_rate is not None
    words = (
        f"With {_word_kept(best)} on the GPU, the best policy that can be run, "
        f"{_NAMES[best.policy]}, finds {word_share(best.hit_rate)} of the experts there when a "
        f"{_word_tokens(result)}"
    )
    facts = []
    if best.baseline.hit_rate is not None:
        facts.append(f"with a random router, it would find {word_share(best.baseline.hit_rate)}")
    if bound is not None and bound.hit_rate is not None:
        facts.append(f"no policy without preloading finds more than {word_share(bound.hit_rate)}")
    moved = []
    if best.bytes_per_token is not None:
        moved.append(f"{format_bytes(round(best.bytes_per_token))} are moved per token.")
    sentence = f"{'; '.join(facts)}."
    return [
        style_words(f"{words}.", Style.STRONG),
        " ".join([sentence[0].upper() + sentence[1:], *moved]),
    ]


def _word_tokens(result: Caching) -> str:
    if result.has_generated_tokens:
        return "token is generated"
    return "token of a prompt passes alone, as if it was generated"


def _word_kept(item: PolicyResult) -> str:
    number = f"{item.experts_per_layer:.4g}"
    if item.budget.isdecimal():
        return f"{number_of(int(item.experts_per_layer), 'expert')} of each layer"
    whole = "the experts" if item.budget.endswith("%") else "experts"
    return f"{item.budget} of {whole} ({number} of each layer)"


def _make_phase(result: Caching, size: PhaseSize) -> Block:
    return (*make_paragraphs([_word_phase(size)]), _make_policies(result, size.phase))


def _word_phase(size: PhaseSize) -> str:
    is_alone = size.num_steps == size.num_tokens
    per_step = "one at a time" if is_alone else "together by batch"
    cost = (
        ""
        if size.uncached_bytes_per_token is None
        else f", {format_bytes(round(size.uncached_bytes_per_token))} if none is on the GPU"
    )
    number = f"{size.requests_per_token:.3g}"
    needs = (
        f"Each token needs {number} experts"
        if is_alone
        else f"The tokens of a step share experts: per token, {number} must be present"
    )
    return (
        f"{size.phase}: {number_of(size.num_tokens, 'token')} in "
        f"{number_of(size.num_steps, 'step')}, {per_step}. {needs}, over all layers{cost}."
    )


def _make_policies(result: Caching, phase: str) -> Table:
    rows: list[tuple[Cell, ...]] = []
    shown = ""
    for item in result.list_by_budget(phase):
        is_first, shown = item.budget != shown, item.budget
        kept = f"{item.experts_per_layer:.4g}"
        rows.append(
            (
                item.budget if is_first else "",
                kept if is_first else "",
                word_size(item.gpu_bytes) if is_first and item.gpu_bytes is not None else "",
                _NAMES[item.policy],
                style_words(_share(item.hit_rate), Style.STRONG),
                _UNKNOWN
                if item.hit_rate_low is None or item.hit_rate_high is None
                else f"{item.hit_rate_low:.0%}–{item.hit_rate_high:.0%}",
                _share(item.baseline.hit_rate),
                _size(item.bytes_per_token),
            )
        )
    headers = ("budget", "kept", "on GPU", "policy", "hits", "95%", "random", "moved")
    return make_table(headers, rows, right=(1, 2, 4, 5, 6, 7))


def _make_groups(result: Caching) -> Iterator[RenderableType]:
    """Yield the hits of each group in decoding, with as many experts as the verdict is about."""
    shown = result.list_groups_of_verdict()
    if result.verdict is None or not shown:
        return
    best, _ = result.verdict
    if len(shown) == 1:
        yield from make_paragraphs(
            [
                f"All tokens of {best.phase} have one {printable(result.by or '', max_length=20)}, "
                f"{printable(shown[0].group, max_length=40)}: its hits are those above."
            ]
        )
        return
    kept = sorted(shown, key=lambda group: group.hit_rates.get(best.policy) or 0.0)[:_GROUPS_SHOWN]
    yield from make_paragraphs(
        [
            f"{best.phase}, by {printable(result.by or '', max_length=20)}, with "
            f"{_word_kept(best)} on the GPU:"
        ]
    )
    policies = [name for name in _NAMES if name in shown[0].hit_rates]
    rows = [
        (
            printable(group.group, max_length=40),
            f"{group.num_tokens:,}",
            *(_share(group.hit_rates[name]) for name in policies),
            _share(group.baseline.hit_rate),
            _size(group.bytes_per_token),
        )
        for group in shown
        if group in kept
    ]
    headers = (
        printable(result.by or "", max_length=20),
        "tokens",
        *(_NAMES[name] for name in policies),
        "random",
        "moved",
    )
    yield make_table(headers, rows, right=range(1, len(headers)))
    if len(shown) > len(rows):
        yield from make_paragraphs(
            [
                f"… and {len(shown) - len(rows):,} with more hits of {_NAMES[best.policy]}: "
                "--format csv lists all"
            ]
        )


def _make_touched(touched: Sequence[Touched]) -> Table:
    by_size: dict[int, dict[str, Touched]] = {}
    for item in touched:
        by_size.setdefault(item.batch_size, {})[item.of] = item
    rows = []
    for size, items in by_size.items():
        items = {name: item for name, item in items.items() if item.has_enough_batches}
        if not items:
            continue
        any_item = next(iter(items.values()))
        rows.append(
            (
                f"{size:,}",
                *_show_batches(items.get("one text")),
                *_show_batches(items.get("several texts")),
                f"{any_item.by_load:.1f}",
                f"{any_item.baseline.experts:.1f}",
            )
        )
    headers = (
        *("tokens at once", "of one text", "batches", "of several", "batches"),
        *("independent", "random"),
    )
    return make_table(headers, rows, right=range(7))


def _show_batches(item: Touched | None) -> tuple[str, str]:
    """Return the experts that batches need, and the number of batches."""
    if item is None:
        return _UNKNOWN, _UNKNOWN
    return f"{item.experts:.1f}", f"{item.fewest_batches:,}"


def _make_legend(result: Caching) -> list[str]:
    batch = (
        "all tokens of a prompt"
        if result.tokens_per_batch is None
        else f"{result.tokens_per_batch:,} tokens of a prompt"
    )
    groups = (
        [
            f"By {printable(result.by or '', max_length=20)}: hits in the same caches, which the "
            "steps of all groups pass through. random and moved are those of "
            f"{_NAMES[result.verdict[0].policy]}."
        ]
        if result.verdict is not None and len(result.list_groups_of_verdict()) > 1
        else []
    )
    return [
        f"A step needs some distinct experts of each layer: one token in decode, {batch} in "
        "prefill. kept: experts of each layer that stay on the GPU; on GPU: their size in all layers. "
        "hits: share of needed experts that are there before the step; each other one is moved "
        "there once. 95%: its interval, if the prompts are a sample. random: for a uniform random "
        "router that chooses as many experts in the same steps, at most 2,000. moved: bytes of experts moved to the GPU, "
        "per token.",
        "static: the experts that the other half of the prompts used most, loaded beforehand and "
        "never changed. LRU: those used last. LFU: those used most since the beginning. Belady: "
        "those needed soonest, which takes knowing the future: the most hits of any cache that "
        "starts empty, in prefill and decode together if both pass through it. Caches stay warm "
        "from prompt to prompt. Experts at work that do not stay have room apart from the budget.",
        *groups,
        "tokens at once: distinct experts that a layer needs for a batch of them. of one text: "
        "consecutive tokens; of several: the n-th tokens of as many prompts. batches: their "
        f"number in a layer; sizes with fewer than {ENOUGH_BATCHES} are left out. Only long prompts "
        "fill large batches, so the prompts differ from size to size. independent: tokens that choose independently with the same load. random: of a random router, "
        "E·(1−(1−k/E)^B) if each token runs k of E experts.",
    ]


def _share(share: float | None) -> str:
    return _UNKNOWN if share is None else word_share(share)


def _size(num_bytes: float | None) -> str:
    return _UNKNOWN if num_bytes is None else format_bytes(round(num_bytes))


def render_json(result: Caching, _: View = DEFAULT_VIEW) -> str:
    """Return everything as one JSON object, numbers unrounded and unknown values as null."""
    return envelope.render_json("moetool.cache/1", result.to_dict())


def render_csv(result: Caching, _: View = DEFAULT_VIEW) -> str:
    """Return one row per policy, budget and phase, over all and for each group."""
    return envelope.render_rows([result])


RENDERERS: Renderers[Caching] = {
    ReportFormat.TABLE: render_table_text,
    ReportFormat.JSON: render_json,
    ReportFormat.CSV: render_csv,
}
