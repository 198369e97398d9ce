"""Lay out the text that a model read and wrote, and the experts that its tokens went to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.box import Box
from rich.cells import cell_len
from rich.text import Text

from moetool.printable import printable
from moetool.report.renderer import View
from moetool.report.text.lines import make_fact, make_notes
from moetool.report.text.page import FILE_WIDTH, Block
from moetool.report.text.styles import Style
from moetool.report.text.tables import make_table
from moetool.trace.decisions import NO_EXPERT
from moetool.trace.excerpt import PromptExcerpt, StackExcerpt
from moetool.trace.metadata import RoutedLayer
from moetool.wording import number_of

# Colours by expert, repeated for more. Each has a contrast of at least 3 with black and with white.
EXPERT_COLORS = (
    *("#0087ff", "#d75f00", "#008700", "#d7005f", "#875fff", "#878700", "#008787", "#ff00af"),
    *("#875f00", "#808080", "#af5fd7", "#af5f5f"),
)

_LONGEST_PROMPT = 200
_LONGEST_WRITTEN = 1_000
_LONGEST_NAME = 60
# Columns of a token.
_WIDEST_PIECE = 16
# Columns between those of a table.
_GAP = 2
# Layers that should fit before a cell shows more than the least of its experts.
_WANTED_LAYERS = 12
_LEAST_EXPERTS = 2

_NONE = "–"
_IDENTITY = "i"
# First letters that need words, of experts and of tokens.
_EXPERT_MARKS = {_NONE: "no expert ran", _IDENTITY: "an identity expert, which returns its input"}
_PIECE_MARKS = dict.fromkeys("Ġ▁", "the tokenizer's letter for a space")

# A line below the headers, and a dotted one above the tokens that the model wrote.
_BOX = Box("    \n    \n ── \n    \n ╌╌ \n    \n    \n    \n")


@dataclass(frozen=True)
class _Layout:
    """The part of a stack's decisions that fits a width.

    Attributes:
        num_layers: Layers, from the first.
        num_experts: Experts of a decision, from that of the largest weight.
        most_experts: Experts of a decision, if all fitted.
        id_width: Columns of an expert.
    """

    num_layers: int
    num_experts: int
    most_experts: int
    id_width: int


class ExpertNames:
    """Names experts in a cell.

    Args:
        layers: The layers of the trace.
    """

    def __init__(self, layers: Sequence[RoutedLayer]) -> None:
        self._num_experts = {(layer.stack, layer.layer): layer.num_experts for layer in layers}

    def name(self, stack: str, layer: int, expert: int) -> str:
        """Return the number of an expert, marked if it is an identity expert, or a dash for none."""
        if expert == NO_EXPERT:
            return _NONE
        is_identity = expert >= self._num_experts[stack, layer]
        return f"{_IDENTITY}{expert}" if is_identity else str(expert)


def make_excerpts(
    excerpts: Sequence[PromptExcerpt], layers: Sequence[RoutedLayer], view: View
) -> Iterator[Block]:
    """Yield the blocks of a page that show prompts, and in the end how to read them.

    Args:
        excerpts: The prompts.
        layers: The layers of the trace that the excerpts are from.
        view: The terminal that the page is for.
    """
    names, seen = ExpertNames(layers), set[str]()
    for excerpt in excerpts:
        yield _make_texts(excerpt, is_named=len(excerpts) > 1)
        yield from _make_tables(excerpt.stacks, names, view, seen)
    if excerpts:
        stacks = [stack for excerpt in excerpts for stack in excerpt.stacks]
        yield make_notes(_explain(stacks, seen, has_color=view.has_color))


def make_token_tables(
    stacks: Sequence[StackExcerpt], layers: Sequence[RoutedLayer], view: View
) -> Iterator[Block]:
    """Yield the tables of a prompt without its text, and in the end how to read them.

    Args:
        stacks: At least one.
        layers: The layers of the trace that the excerpts are from.
        view: The terminal that the page is for.
    """
    seen = set[str]()
    yield from _make_tables(stacks, ExpertNames(layers), view, seen)
    yield make_notes(_explain(stacks, seen, has_color=view.has_color))


def _make_tables(
    stacks: Sequence[StackExcerpt], names: ExpertNames, view: View, seen: set[str]
) -> Iterator[Block]:
    """Yield the table of each stack, and add the marks that it shows to those seen."""
    for stack in stacks:
        table = _StackTable(stack, names, width=view.width or FILE_WIDTH)
        seen |= table.list_marks()
        yield [*([_make_heading(stack)] if len(stacks) > 1 else []), *table.make()]


def _make_texts(excerpt: PromptExcerpt, *, is_named: bool) -> Block:
    block = []
    if is_named:
        name = printable(excerpt.prompt_id, max_length=_LONGEST_NAME)
        domain = printable(excerpt.domain, max_length=_LONGEST_NAME)
        block.append(make_fact("id", f"{name}, domain {domain}"))
    block.append(make_fact("prompt", Text(printable(excerpt.prompt, max_length=_LONGEST_PROMPT))))
    if excerpt.written is not None:
        written = printable(excerpt.written, max_length=_LONGEST_WRITTEN).strip()
        words = Text(written, Style.STRONG) if written else Text("(nothing)", Style.MUTED)
        block.append(make_fact("written", words))
    return block


def _make_heading(stack: StackExcerpt) -> Text:
    return Text(printable(stack.stack, max_length=_LONGEST_NAME), Style.LABEL)


class _StackTable:
    """A table with a row for each token and a column for each layer.

    Args:
        stack: What to show.
        names: Names of its experts.
        width: Columns of the terminal.
    """

    def __init__(self, stack: StackExcerpt, names: ExpertNames, *, width: int) -> None:
        self._stack = stack
        self._pieces = [_shorten(token.piece) for token in stack.tokens]
        self._gaps = [0] + [
            after.position - before.position - 1 for before, after in pairwise(stack.tokens)
        ]
        # By token, layer and rank.
        self._names = [
            [
                [names.name(stack.stack, layer, expert) for expert in chosen]
                for layer, chosen in zip(stack.layers, token.experts, strict=True)
            ]
            for token in stack.tokens
        ]
        self._layout = self._choose_layout(width)

    def list_marks(self) -> set[str]:
        """Return the marks that the table shows."""
        names = {name[0] for token in self._shown() for cell in token for name in cell}
        return {*(names & _EXPERT_MARKS.keys()), *({*"".join(self._pieces)} & _PIECE_MARKS.keys())}

    def make(self) -> Block:
        """Return the table, and a sentence on what did not fit."""
        headers = (
            "",
            "token",
            *(f"L{layer}" for layer in self._stack.layers[: self._layout.num_layers]),
        )
        rows: list[tuple[Text, ...]] = []
        first_new = None
        for token, piece, gap, cells in zip(
            self._stack.tokens, self._pieces, self._gaps, self._shown(), strict=True
        ):
            if gap:
                rows.append((Text(), Text(_name_gap(gap), Style.MUTED), *(Text() for _ in cells)))
            if token.is_new and first_new is None:
                first_new = len(rows)
            rows.append(
                (
                    Text(str(token.position), Style.MUTED),
                    Text(piece),
                    *(
                        _make_cell(names, chosen, id_width=self._layout.id_width)
                        for names, chosen in zip(cells, token.experts, strict=False)
                    ),
                )
            )
        table = make_table(headers, rows, right=(0, *range(2, len(headers))))
        table.box = _BOX
        table.padding = (0, 0, 0, _GAP - 1)
        if first_new:
            table.rows[first_new - 1].end_section = True
        return [table, *make_notes(self._describe_cuts())]

    def _shown(self) -> list[list[list[str]]]:
        """Return the names that fit, by token, layer and rank."""
        layout = self._layout
        return [
            [cell[: layout.num_experts] for cell in token[: layout.num_layers]]
            for token in self._names
        ]

    def _choose_layout(self, width: int) -> _Layout:
        """Return the largest number of experts of a decision that leaves space for some layers."""
        cells = [cell for token in self._names for cell in token]
        id_width = max(len(name) for cell in cells for name in cell)
        most_experts = max(map(len, cells))
        num_layers = len(self._stack.layers)
        token_width = max(map(cell_len, ["token", *self._pieces, *map(_name_gap, self._gaps)]))
        position_width = len(str(self._stack.tokens[-1].position))
        space = width - position_width - _GAP - token_width
        header = max(len(f"L{layer}") for layer in self._stack.layers)
        fitting = 0
        for num_experts in range(most_experts, 0, -1):
            column = max(num_experts * (id_width + 1) - 1, header) + _GAP
            fitting = min(space // column, num_layers)
            if fitting >= min(num_layers, _WANTED_LAYERS) or num_experts <= _LEAST_EXPERTS:
                break
        return _Layout(max(fitting, 1), num_experts, most_experts, id_width)

    def _describe_cuts(self) -> Iterator[str]:
        layers, layout = self._stack.layers, self._layout
        if layout.num_layers < len(layers):
            last = layers[layout.num_layers - 1]
            yield (f"layers {layers[0]}–{last} of {len(layers)}; --layers chooses others")
        if layout.num_experts < layout.most_experts:
            yield (
                f"experts with the {layout.num_experts} largest weights of {layout.most_experts}"
            )


def _make_cell(names: Sequence[str], chosen: Sequence[int], *, id_width: int) -> Text:
    """Return a decision's experts in the colour of the first, which is emphasized."""
    first, *others = [f"{name:>{id_width}}" for name in names]
    if chosen[0] == NO_EXPERT:
        return Text(" ".join([first, *others]), Style.MUTED)
    color = EXPERT_COLORS[chosen[0] % len(EXPERT_COLORS)]
    return Text.assemble((first, f"bold {color}"), *((f" {name}", color) for name in others))


def _shorten(piece: str) -> str:
    text = Text(printable(piece))
    text.truncate(_WIDEST_PIECE, overflow="ellipsis")
    return text.plain


def _name_gap(num_tokens: int) -> str:
    return f"… {number_of(num_tokens, 'token')}"


def _explain(
    stacks: Sequence[StackExcerpt], marks: Collection[str], *, has_color: bool
) -> Iterator[str]:
    """Yield how to read the tables, as far as they need it."""
    first_layer = stacks[0].layers[0]
    is_new = any(token.is_new for stack in stacks for token in stack.tokens)
    color = ", which sets the colour" if has_color else ""
    yield f"L{first_layer}: layer {first_layer}. Cells list experts, largest weight first{color}."
    if is_new:
        yield "Below the dots: tokens that the model wrote. The last one is never routed."
    for mark, words in (_EXPERT_MARKS | _PIECE_MARKS).items():
        if mark in marks:
            yield f"{mark}: {words}."
