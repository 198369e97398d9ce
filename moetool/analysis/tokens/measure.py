"""Measuring how far routing is decided by the token alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moetool.analysis.statistics.halves import hash_prompts, split_prompts
from moetool.analysis.statistics.held_out import HeldOutSample
from moetool.analysis.statistics.mixing import mix_bits
from moetool.analysis.statistics.prediction import Prediction, ScoredTokens, rate_prediction
from moetool.analysis.tokens.first_choices import (
    NO_FIRST_CHOICE,
    find_first_choices,
    has_first_choices,
    take_token_ids,
)
from moetool.analysis.tokens.result import (
    FrequentToken,
    LayerTokens,
    TokenBaseline,
    TokenInLayer,
    TokenRouting,
    UsualShare,
    reach_verdict,
)
from moetool.analysis.tokens.sparse_counts import SparseCounts
from moetool.analysis.tokens.usual_share import expect_fixed, expect_usual_share
from moetool.trace.metadata import RoutedLayer
from moetool.trace.windows.reader import DecisionReader
from moetool.trace.windows.window import DecisionWindow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Of all layers together, 16 bytes each, and as many again while they are merged.
_MOST_CELLS = 2**23


@dataclass
class _Shares:
    """First choices by token id in one layer; an entry for each id, in ascending order.

    Attributes:
        ids: # (num_ids,)
        total: Occurrences. # (num_ids,)
        seen: Experts that were a first choice. # (num_ids,)
        usual: The most frequent first choice, of equally frequent ones the more popular. # (num_ids,)
        most: Its occurrences. # (num_ids,)
    """

    ids: Ints
    total: Ints
    seen: Ints
    usual: Ints
    most: Ints


class _Tally:
    """First choices by layer, token id, half of the prompts and expert.

    If distinct ids are too many for the memory, ids are sampled by a hash: of all traces with the
    same tokens, the same ids are left.

    Args:
        reader: The trace.
    """

    def __init__(self, reader: DecisionReader) -> None:
        self._reader = reader
        self._hashes = hash_prompts(reader.prompts)
        self._is_fitted = ~split_prompts(reader.prompts)
        self.sample = HeldOutSample()
        self.num_halvings = 0
        self.pieces: dict[int, str] = {}
        self.widths = [layer.num_experts + layer.num_identity_experts for layer in reader.layers]
        self.counts = [SparseCounts() for _ in reader.layers]
        self.num_tokens = [0] * len(self.counts)

    def add(self, window: DecisionWindow) -> None:
        """Count the decisions of a window."""
        self.pieces.update(window.pieces)
        token_id = take_token_ids(window)
        # Short numbers for the ids that a window has.
        kept: dict[int, tuple[Ints, Ints, Ints]] = {}
        for index, layer in enumerate(self._reader.layers):
            choices = window.layers.get((layer.stack, layer.layer))
            if choices is None:
                continue
            self.num_tokens[index] += len(choices.token)
            if not has_first_choices(self._reader):
                continue
            first = find_first_choices(choices, has_ranks=self._reader.has_ranks)
            ran = first >= 0
            ids, prompt = token_id[choices.token[ran]], window.prompt[choices.token[ran]]
            first = first[ran]
            kept[index] = (ids, first, prompt)
            half = (~self._is_fitted[prompt]).astype(np.int64)
            is_counted = is_sampled(ids, self.num_halvings)
            key = (ids * 2 + half) * self.widths[index] + first
            self.counts[index].add(key[is_counted])
        self._keep(kept, window)
        self.shrink()

    def shrink(self) -> None:
        """Leave out half of the ids until the rest fit into memory."""
        if sum(counts.num_cells for counts in self.counts) <= _MOST_CELLS:
            return
        while sum(len(counts.collect()[0]) for counts in self.counts) > _MOST_CELLS:
            self.num_halvings += 1
            for counts, width in zip(self.counts, self.widths, strict=True):
                keys, _ = counts.collect()
                counts.keep(is_sampled(keys // (2 * width), self.num_halvings))

    def _keep(self, found: dict[int, tuple[Ints, Ints, Ints]], window: DecisionWindow) -> None:
        """Keep the held-out prompts of a window that the sample wants."""
        for prompt in np.unique(window.prompt).tolist():
            prompt_hash = int(self._hashes[prompt])
            if self._is_fitted[prompt] or not self.sample.wants(prompt_hash):
                continue
            values = {}
            for index, (ids, first, prompts) in found.items():
                start, end = np.searchsorted(prompts, [prompt, prompt + 1])
                if start < end:
                    values[index] = (
                        ids[start:end, None].astype(np.int32),
                        first[start:end, None].astype(np.int16),
                    )
            num_tokens = max((len(ids) for ids, _ in values.values()), default=0)
            self.sample.add(prompt_hash, num_tokens, values)


def is_sampled(ids: Ints, num_halvings: int) -> NDArray[np.bool_]:
    """Return which ids are counted after leaving out half of them a number of times."""
    if not num_halvings:
        return np.ones(len(ids), dtype=bool)
    return mix_bits(ids.astype(np.uint64)) < np.uint64(1 << (64 - num_halvings))


def measure_tokens(
    reader: DecisionReader, *, min_count: int = 10, num_listed: int = 20
) -> TokenRouting:
    """Return how far a token's first choice of expert is decided by the token alone.

    Args:
        reader: The trace, with the columns `token_id` and, if it has them, `token` and `weight`.
        min_count: Occurrences that an id needs in a layer to be judged there.
        num_listed: Frequent ids that are listed for each stack.

    Raises:
        InputError: The trace has no token ids, or a row is not one of a trace.
    """
    tally = _Tally(reader)
    for window in reader:
        tally.add(window)
    layers, cells = [], []
    for index, layer in enumerate(reader.layers):
        described, rows = _describe(tally, index, layer, min_count=min_count)
        layers.append(described)
        cells += rows
    return TokenRouting(
        trace=reader.facts,
        min_count=min_count,
        layers=tuple(layers),
        verdict=reach_verdict(layers),
        tokens=tuple(_list_frequent(cells, num_listed)),
        id_sample=0.5**tally.num_halvings,
        notes=(*reader.notes, *_make_notes(reader, layers, tally, min_count=min_count)),
        cells=tuple(cells),
    )


def _describe(
    tally: _Tally, index: int, layer: RoutedLayer, *, min_count: int
) -> tuple[LayerTokens, list[TokenInLayer]]:
    """Return a layer's figures, and those of its frequent ids."""
    width = tally.widths[index]
    keys, counts = tally.counts[index].collect()
    owner, expert = np.divmod(keys, width)
    popularity = np.bincount(expert, weights=counts, minlength=width).astype(np.float64)
    shares = _share(owner // 2, expert, counts, popularity)
    frequent = shares.total >= min_count
    total, most = shares.total[frequent], shares.most[frequent]
    even = np.full(width, 1 / width)
    chances = popularity / max(1.0, popularity.sum())
    expected = [expect_usual_share(total, chance) for chance in (even, chances)]
    baselines: list[TokenBaseline | None] = [
        TokenBaseline(
            fixed_share=float(expect_fixed(total, chance).mean()),
            usual_share=float(usual @ total / total.sum()),
        )
        if len(total)
        else None
        for chance, usual in zip((even, chances), expected, strict=True)
    ]
    described = LayerTokens(
        stack=layer.stack,
        layer=layer.layer,
        num_experts=width,
        top_k=layer.top_k,
        num_tokens=tally.num_tokens[index],
        num_token_ids=len(shares.ids),
        num_frequent=len(total),
        fixed_share=float((most == total).mean()) if len(total) else None,
        usual_share=float(most.sum() / total.sum()) if len(total) else None,
        baseline=baselines[0],
        loads=baselines[1],
        prediction=_predict(tally, index, owner, expert, counts),
    )
    rows = [
        TokenInLayer(
            stack=layer.stack,
            layer=layer.layer,
            token_id=one,
            token=tally.pieces.get(one),
            num_tokens=number,
            num_experts_seen=seen,
            usual_expert=usual,
            usual_share=largest / number,
            random_usual_share=random,
            loads_usual_share=loads,
        )
        for one, number, seen, usual, largest, random, loads in zip(
            shares.ids[frequent].tolist(),
            total.tolist(),
            shares.seen[frequent].tolist(),
            shares.usual[frequent].tolist(),
            most.tolist(),
            expected[0].tolist(),
            expected[1].tolist(),
            strict=True,
        )
    ]
    return described, rows


def _share(ids: Ints, expert: Ints, counts: Ints, popularity: Floats) -> _Shares:
    """Return the first choices of each id, from counts by id and expert in any order."""
    width = len(popularity)
    keys, index = np.unique(ids * width + expert, return_inverse=True)
    merged = np.bincount(index, weights=counts, minlength=len(keys)).astype(np.int64)
    owner, expert = np.divmod(keys, width)
    # Within an id, the usual expert last.
    order = np.lexsort((-expert, popularity[expert], merged, owner))
    owner, expert, merged = owner[order], expert[order], merged[order]
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    last = np.append(starts[1:], len(owner))[: len(starts)] - 1
    return _Shares(
        ids=owner[starts],
        total=np.add.reduceat(merged, starts) if len(starts) else merged,
        seen=last - starts + 1,
        usual=expert[last],
        most=merged[last],
    )


def _predict(
    tally: _Tally, index: int, owner: Ints, expert: Ints, counts: Ints
) -> Prediction | None:
    """Return how well the first half's usual experts predict the second half's first choices."""
    width = tally.widths[index]
    is_fitted = owner % 2 == 0
    ids, wanted, prompt = tally.sample.collect(index)
    is_counted = is_sampled(ids[:, 0], tally.num_halvings)
    ids, wanted, prompt = ids[is_counted, 0], wanted[is_counted, 0], prompt[is_counted]
    if not is_fitted.any() or not len(ids):
        return None
    popularity = np.bincount(expert[is_fitted], weights=counts[is_fitted], minlength=width).astype(
        np.float64
    )
    shares = _share(owner[is_fitted] // 2, expert[is_fitted], counts[is_fitted], popularity)
    popular = int(popularity.argmax())
    place = np.minimum(np.searchsorted(shares.ids, ids), len(shares.ids) - 1)
    predicted = np.where(shares.ids[place] == ids, shares.usual[place], popular)
    return rate_prediction(
        ScoredTokens(
            hits=(predicted == wanted).astype(np.int64),
            popular_hits=(wanted == popular).astype(np.int64),
            num_chosen=np.ones(len(ids), dtype=np.int64),
            prompt=prompt,
        ),
        chance=1 / width,
        num_tokens_fitted=int(popularity.sum()),
    )


def _list_frequent(cells: Sequence[TokenInLayer], most: int) -> Iterator[FrequentToken]:
    """Yield the most frequent ids of each stack."""
    by_id: dict[tuple[str, int], list[TokenInLayer]] = {}
    for cell in cells:
        by_id.setdefault((cell.stack, cell.token_id), []).append(cell)
    number: Mapping[tuple[str, int], int] = {
        key: max(cell.num_tokens for cell in mine) for key, mine in by_id.items()
    }
    for stack in sorted({stack for stack, _ in by_id}):
        keys = [key for key in by_id if key[0] == stack]
        for key in sorted(keys, key=lambda key: (-number[key], key))[:most]:
            mine = by_id[key]
            yield FrequentToken(
                stack=stack,
                token_id=key[1],
                token=mine[0].token,
                num_tokens=number[key],
                num_layers=len(mine),
                num_fixed=sum(cell.num_experts_seen == 1 for cell in mine),
                usual_share=sum(cell.usual_share for cell in mine) / len(mine),
                baseline=UsualShare(sum(one.random_usual_share for one in mine) / len(mine)),
                loads=UsualShare(sum(one.loads_usual_share for one in mine) / len(mine)),
                usual_experts={cell.layer: cell.usual_expert for cell in mine},
            )


def _make_notes(
    reader: DecisionReader, layers: Sequence[LayerTokens], tally: _Tally, *, min_count: int
) -> Iterator[str]:
    if not has_first_choices(reader):
        yield NO_FIRST_CHOICE
        return
    if any(layer.fixed_share is None for layer in layers):
        yield f"No token id occurs {min_count} times in some layers: no id is judged there."
    if tally.num_halvings:
        yield (
            f"Token ids are too many for the memory: 1 of {2**tally.num_halvings} was counted, "
            "chosen by a hash."
        )
    if any(layer.prediction is None for layer in layers):
        yield (
            "First choices of some layers are not predicted by the token id: half of the prompts "
            "have none there."
            if len(reader.prompts) > 1
            else "First choices are not predicted by the token id: that takes two prompts."
        )
