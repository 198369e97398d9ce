"""Put layers, experts, routing and published figures into words that fit on a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moetool.report.text.styles import make_printable
from moetool.report.text.words import UNKNOWN
from moetool.wording import format_count, number_of

if TYPE_CHECKING:
    from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
    from moetool.anatomy.routing.routing_style import RoutingStyle
    from moetool.anatomy.skeleton.mixers import Mixer
    from moetool.checkpoint.layouts.mergekit import ExpertSources
    from moetool.inspection.figures import PublishedFigures
    from moetool.inspection.result import Inspection

# Indices at equal distances are abbreviated from this length; fewer are listed one by one.
_SHORTEST_SERIES = 4


def word_active(active: ActiveRange | None) -> str:
    """Return an active count, or its range: `12.88B`, `18.59B to 31.33B`."""
    if active is None:
        return UNKNOWN
    if active.exact is not None:
        return format_count(active.exact)
    return f"{format_count(active.fewest)} to {format_count(active.most)}"


def word_numbers(number: int | Sequence[int | None] | None) -> str:
    """Return a number, or the range over several layers: `8`, `4 to 8`."""
    if number is None:
        return UNKNOWN
    if isinstance(number, int):
        return str(number)
    known = [one for one in number if one is not None]
    if not known:
        return UNKNOWN
    words = str(known[0]) if len(set(known)) == 1 else f"{min(known)} to {max(known)}"
    return words if len(known) == len(number) else f"{words}, some unknown"


def word_layers(model: Inspection) -> str:
    """Return the number of layers, and which of them route."""
    if model.num_layers is None:
        return UNKNOWN
    if model.num_moe_layers is None:
        return f"{model.num_layers}, unknown how many with experts"
    if not model.num_moe_layers:
        return f"{model.num_layers}, all dense"
    if model.num_moe_layers == model.num_layers:
        return f"{model.num_layers}, all with experts"
    words = f"{model.num_layers}, {model.num_moe_layers} of them with experts"
    if model.anatomy is None:
        return words
    dense = [
        f"{'' if len(model.anatomy.dense_layers) == 1 else stack + ' '}{word_indices(layers)}"
        for stack, layers in model.anatomy.dense_layers.items()
        if layers
    ]
    return f"{words}; without: {'; '.join(dense)}"


def word_experts(model: Inspection) -> str:
    """Return the number of experts in a layer and how many a token runs."""
    if model.num_moe_layers is None and model.num_experts is None:
        return UNKNOWN
    if model.num_moe_layers == 0:
        return "none"
    top_k = "unknown top-k" if model.top_k is None else f"top-{word_numbers(model.top_k)}"
    words = f"{top_k} of {word_numbers(model.num_experts)}"
    layers = model.anatomy.routed_layers if model.anatomy else ()
    identity = {layer.num_identity_experts for layer in layers} - {0}
    if identity:
        words += f" and {max(identity)} identity experts"
    if model.num_shared_experts is None:
        is_any = model.parameters and model.parameters.components["shared_experts"]
        words += ", shared experts" if is_any else ""
    elif model.num_shared_experts:
        words += f", {model.num_shared_experts} shared"
    widths = sorted({layer.expert_width for layer in layers if layer.expert_width is not None})
    if not layers and isinstance(model.expert_params, int):
        words += f"; {format_count(model.expert_params)} parameters each"
    if widths:
        words += f"; {' and '.join(f'{width:,}' for width in widths)} wide"
    return words


def word_sources(sources: ExpertSources) -> list[str]:
    """Return which model each expert was made of, one line for each."""
    lines = [f"expert {number}: {source}" for number, source in enumerate(sources.experts)]
    lines += [
        f"shared expert {number}: {source}" for number, source in enumerate(sources.shared_experts)
    ]
    if sources.base is not None:
        lines.append(f"all else: {sources.base}")
    return list(map(make_printable, lines))


def word_routing(model: Inspection) -> list[str]:
    """Return how layers choose their experts, one line for each routing style."""
    if model.anatomy is None:
        return []
    styles = Counter(layer.style for layer in model.anatomy.routed_layers)
    return [
        _word_style(style)
        if len(styles) == 1
        else f"{number_of(count, 'layer')}: {_word_style(style)}"
        for style, count in styles.items()
        if style is not None
    ]


def _word_style(style: RoutingStyle) -> str:
    words = [style.scores or "scores unknown"]
    if style.is_normalized is not None:
        words.append("normalised" if style.is_normalized else "not normalised")
    if style.scale is not None and style.scale != 1:
        words.append(f"times {style.scale:g}")
    if style.has_selection_bias:
        words.append("selection bias")
    if style.num_groups > 1:
        words.append(f"{style.num_chosen_groups} of {style.num_groups} groups")
    if style.is_hashed:
        words.append("chosen by token id")
    if style.capacity is not None:
        words.append(f"capacity {style.capacity}")
    return ", ".join(words)


def word_mixer(mixer: Mixer) -> str:
    """Return how layers mix tokens: `32 x grouped-query attention, 32 heads, 8 KV heads`."""
    words = [f"{mixer.num_layers} x {mixer.kind.value}"]
    if mixer.num_heads is not None:
        heads = f"{mixer.num_heads} heads"
        if mixer.num_kv_heads is not None and mixer.num_kv_heads != mixer.num_heads:
            heads += f", {number_of(mixer.num_kv_heads, 'KV head')}"
        words.append(heads)
    if mixer.head_dim is not None:
        words.append(f"{mixer.head_dim:,} wide")
    if mixer.sliding_window is not None:
        words.append(f"window {mixer.sliding_window}")
    if mixer.is_sparse:
        words.append("sparse")
    return ", ".join(words)


def word_published(published: PublishedFigures) -> str | None:
    """Return the vendor's figures and the counts they agree with; None if there are none."""
    words = []
    if published.total_b is not None:
        agrees = "" if published.meets_total else " (the count above differs)"
        words.append(f"{published.total_b}B total{agrees}")
    if published.active_b is not None:
        words.append(f"{published.active_b}B active{_word_agreement(published)}")
    return " and ".join(words) or None


def _word_agreement(published: PublishedFigures) -> str:
    """Return which of the page's counts of active parameters a vendor's figure agrees with."""
    if published.meets_active:
        names = " and ".join(_quote(definition) for definition in published.meets_active)
        return f", which agrees with {names} above"
    if published.closest_active is not None:
        closest = _quote(published.closest_active)
        return f", which agrees with none of the counts above; {closest} is the closest"
    return ""


def _quote(definition: ActiveDefinition) -> str:
    return f'"{definition.value.replace("_", " ")}"'


def word_indices(numbers: Sequence[int]) -> str:
    """Return ascending indices, abbreviated at equal distances: `0-2, 5, 7, …, 13`."""
    words = []
    start = 0
    while start < len(numbers):
        end = _find_end(numbers, start)
        first, last = numbers[start], numbers[end]
        if end > start and last - first == end - start:
            words.append(f"{first}-{last}")
        elif end - start >= _SHORTEST_SERIES - 1:
            words.append(f"{first}, {numbers[start + 1]}, …, {last}")
        else:
            words.append(str(first))
            end = start
        start = end + 1
    return ", ".join(words)


def _find_end(numbers: Sequence[int], start: int) -> int:
    """Return the last index of the run of equal distances that begins at `start`."""
    end = min(start + 1, len(numbers) - 1)
    while (
        end + 1 < len(numbers)
        and numbers[end + 1] - numbers[end] == numbers[start + 1] - numbers[start]
    ):
        end += 1
    return end
