"""The text that a model read and wrote, and the table of its tokens' experts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

import pytest
from rich.cells import cell_len
from rich.color import Color, ColorSystem

from moetool.report.renderer import View
from moetool.report.text.page import render_page
from moetool.report.trace_excerpt import EXPERT_COLORS, make_excerpts
from moetool.trace.excerpt import PromptExcerpt, RoutedToken, StackExcerpt
from moetool.trace.metadata import RoutedLayer

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
WIDE = 200


def describe_layers(
    num_layers: int, *, num_experts: int = 8, top_k: int = 2, stack: str = "decoder"
) -> tuple[RoutedLayer, ...]:
    return tuple(
        RoutedLayer(
            stack=stack,
            layer=number,
            module="",
            router=None,
            num_experts=num_experts,
            num_identity_experts=4,
            top_k=top_k,
        )
        for number in range(num_layers)
    )


def make_stack(
    experts: Sequence[Sequence[Sequence[int]]],
    *,
    num_given: int | None = None,
    positions: Sequence[int] | None = None,
    pieces: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    stack: str = "decoder",
) -> StackExcerpt:
    """Return the experts of some tokens, by token, layer and rank."""
    num_given = len(experts) if num_given is None else num_given
    return StackExcerpt(
        stack=stack,
        layers=tuple(range(len(experts[0])) if layers is None else layers),
        tokens=tuple(
            RoutedToken(
                position=positions[index] if positions else index,
                piece=pieces[index] if pieces else f"t{index}",
                is_new=index >= num_given,
                experts=tuple(map(tuple, chosen)),
            )
            for index, chosen in enumerate(experts)
        ),
    )


def make_wide_stack(num_layers: int, *, num_experts: int, top_k: int) -> StackExcerpt:
    """Return a stack of three tokens, each of whose experts differ by layer and rank."""
    return make_stack(
        [
            [
                [(token + 7 * layer + rank) % num_experts for rank in range(top_k)]
                for layer in range(num_layers)
            ]
            for token in range(3)
        ]
    )


def make_prompt(
    *stacks: StackExcerpt,
    prompt: str = "Once",
    written: str | None = None,
    prompt_id: str = "1",
    domain: str = "(none)",
) -> PromptExcerpt:
    return PromptExcerpt(
        prompt_id=prompt_id, domain=domain, prompt=prompt, written=written, stacks=stacks
    )


def render(
    *excerpts: PromptExcerpt,
    layers: Sequence[RoutedLayer] | None = None,
    width: int | None = WIDE,
    has_color: bool = False,
) -> str:
    view = View(width=width, has_color=has_color)
    layers = describe_layers(64) if layers is None else layers
    return render_page(make_excerpts(excerpts, layers, view), view)


def read_rows(text: str) -> list[list[str]]:
    """Return the words of each row: position, token, experts."""
    lines = text.splitlines()
    at = next(number for number, line in enumerate(lines) if line.split()[:1] == ["token"])
    table = lines[at + 2 : lines.index("", at) if "" in lines[at:] else None]
    return [line.split() for line in table if line.lstrip()[:1].isdecimal()]


def test_each_row_lists_a_tokens_experts_layer_by_layer_and_rank_by_rank() -> None:
    experts = [[[5, 2], [0, 7]], [[1, 3], [4, 6]]]
    text = render(make_prompt(make_stack(experts)))
    assert read_rows(text) == [
        ["0", "t0", "5", "2", "0", "7"],
        ["1", "t1", "1", "3", "4", "6"],
    ]
    (header,) = (line.split() for line in text.splitlines() if "token " in line)
    assert header == ["token", "L0", "L1"]


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 1), (8, 2), (128, 8)])
def test_where_all_fits_every_expert_of_every_layer_is_shown(num_experts: int, top_k: int) -> None:
    stack = make_wide_stack(4, num_experts=num_experts, top_k=top_k)
    text = render(make_prompt(stack), layers=describe_layers(4, num_experts=num_experts))
    for row, token in zip(read_rows(text), stack.tokens, strict=True):
        shown = [int(word) for word in row[2:]]
        assert shown == [expert for chosen in token.experts for expert in chosen]
    assert "--layers" not in text
    assert "largest weights of" not in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize(
    ("num_layers", "num_experts", "top_k"), [(6, 8, 2), (32, 8, 2), (48, 128, 8), (61, 16, 1)]
)
def test_what_does_not_fit_a_width_is_left_out_and_named(
    width: int, num_layers: int, num_experts: int, top_k: int
) -> None:
    stack = make_wide_stack(num_layers, num_experts=num_experts, top_k=top_k)
    layers = describe_layers(num_layers, num_experts=num_experts, top_k=top_k)
    text = render(make_prompt(stack), layers=layers, width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    (header,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["token"])
    num_shown = len(header) - 1
    assert header[1:] == [f"L{layer}" for layer in range(num_shown)]
    cut = re.search(r"^layers 0–(\d+) of (\d+); --layers chooses others$", text, re.M)
    if num_shown < num_layers:
        assert cut
        assert [int(number) for number in cut.groups()] == [num_shown - 1, num_layers]
    else:
        assert cut is None
    for row, token in zip(read_rows(text), stack.tokens, strict=True):
        num_of_decision, rest = divmod(len(row) - 2, num_shown)
        assert rest == 0
        fewer = f"experts with the {num_of_decision} largest weights of {top_k}"
        assert (fewer in text) == (num_of_decision < top_k)
        assert [int(word) for word in row[2:]] == [
            expert for chosen in token.experts[:num_shown] for expert in chosen[:num_of_decision]
        ]


def test_a_pipe_gets_the_columns_of_a_page() -> None:
    stack = make_wide_stack(48, num_experts=128, top_k=8)
    layers = describe_layers(48, num_experts=128)
    piped = render(make_prompt(stack), layers=layers, width=None)
    assert piped == render(make_prompt(stack), layers=layers, width=80)


def test_layers_keep_the_numbers_of_the_model() -> None:
    stack = make_stack([[[1], [2]]], layers=(3, 7))
    text = render(make_prompt(stack))
    assert "L3" in text
    assert "L7" in text
    assert "L1" not in text
    assert "L3: layer 3." in text
    assert "L0" not in text


def test_a_rule_divides_what_the_model_read_from_what_it_wrote() -> None:
    stack = make_stack([[[1, 2]]] * 5, num_given=3)
    lines = render(make_prompt(stack, written="more")).splitlines()
    (at,) = (number for number, line in enumerate(lines) if set(line) == {"╌"})
    assert lines[at - 1].split()[:2] == ["2", "t2"]
    assert lines[at + 1].split()[:2] == ["3", "t3"]
    assert "Below the dots" in "\n".join(lines)


def test_without_new_tokens_there_is_no_rule() -> None:
    text = render(make_prompt(make_stack([[[1, 2]]] * 5)))
    assert "╌" not in text
    assert "Below" not in text
    assert "written" not in text


def test_tokens_that_are_left_out_are_counted() -> None:
    stack = make_stack([[[1]]] * 4, positions=[0, 1, 36, 38])
    lines = [line.strip() for line in render(make_prompt(stack)).splitlines()]
    at = lines.index("… 34 tokens")
    assert lines[at - 1].startswith("1")
    assert lines[at + 1].startswith("36")
    assert lines[at + 2] == "… 1 token"


def test_dropped_tokens_and_identity_experts_are_marked_and_explained() -> None:
    experts = [[[5, 9]], [[3, -1]], [[-1, -1]]]
    text = render(make_prompt(make_stack(experts)))
    assert [row[2:] for row in read_rows(text)] == [["5", "i9"], ["3", "–"], ["–", "–"]]
    assert "–: no expert ran." in text
    assert "i: an identity expert" in text


def test_marks_that_do_not_occur_are_not_explained() -> None:
    text = render(make_prompt(make_stack([[[5, 7]], [[3, 0]]])))
    assert "no expert ran" not in text
    assert "identity" not in text


@pytest.mark.parametrize("mark", ["Ġ", "▁"])
def test_a_tokenizers_letter_for_a_space_is_explained(mark: str) -> None:
    explained = f"{mark}: the tokenizer's letter for a space."
    stack = make_stack([[[1]]] * 2, pieces=["is", f"{mark}cat"])
    assert explained in render(make_prompt(stack))
    assert "identity" not in render(make_prompt(stack))
    assert explained not in render(make_prompt(make_stack([[[1]]])))


def test_the_text_is_shown_with_what_was_written_apart() -> None:
    stack = make_stack([[[1]]] * 2, num_given=1)
    text = render(make_prompt(stack, prompt="Once upon", written=" a time,\nlong ago"))
    lines = [line.split(maxsplit=1) for line in text.splitlines()[:2]]
    assert lines == [["prompt", "Once upon"], ["written", "a time,\\nlong ago"]]


def test_a_model_that_wrote_nothing_is_said_to() -> None:
    text = render(make_prompt(make_stack([[[1]]]), written=""))
    assert re.search(r"^written +\(nothing\)$", text, re.M)


def test_long_texts_keep_both_ends() -> None:
    prompt = "begin" + "x" * 10_000 + "end"
    text = render(make_prompt(make_stack([[[1]]]), prompt=prompt, written=prompt))
    for part in text.replace(" ", "").replace("\n", "").split("written"):
        assert "begin" in part
        assert "…" in part
        assert "end" in part
    assert len(text) < 3_000


def test_several_prompts_are_named_with_their_domains() -> None:
    stack = make_stack([[[1]]])
    texts = [
        make_prompt(stack, prompt_id="a-1", domain="code"),
        make_prompt(stack, prompt_id="b-2", domain="prose"),
    ]
    text = render(*texts)
    assert re.search(r"^id +a-1, domain code$", text, re.M)
    assert re.search(r"^id +b-2, domain prose$", text, re.M)
    assert text.count("L0: layer 0.") == 1
    assert not re.search(r"^id ", render(texts[0]), re.M)


def test_the_stacks_of_an_encoder_decoder_have_a_table_each() -> None:
    encoder = make_stack([[[1], [2]]] * 3, layers=(1, 3), stack="encoder")
    decoder = make_stack([[[4]]] * 2, num_given=1, layers=(5,), stack="decoder")
    layers = (*describe_layers(6, stack="encoder"), *describe_layers(6))
    lines = render(make_prompt(encoder, decoder), layers=layers).splitlines()
    first, second = lines.index("encoder"), lines.index("decoder")
    assert lines[first + 1].split() == ["token", "L1", "L3"]
    assert lines[second + 1].split() == ["token", "L5"]
    assert first < second
    assert "decoder" not in render(make_prompt(decoder), layers=layers)


def test_without_prompts_there_is_nothing() -> None:
    assert render() == ""


def test_without_colour_there_are_no_escapes() -> None:
    assert "\x1b" not in render(make_prompt(make_stack([[[1]]]), written="x"))


def test_colour_changes_no_letter() -> None:
    stack = make_stack([[[1, 2]]] * 5, num_given=3)
    plain, colored = (
        render(make_prompt(stack, written="more"), has_color=has_color)
        for has_color in (False, True)
    )
    colored = ESCAPE.sub("", colored).replace(", which sets the colour", "")
    assert [line.rstrip() for line in colored.splitlines()] == plain.splitlines()


def test_the_first_expert_decides_the_colour() -> None:
    tops = [0, 1, 7, 1]
    experts = [[[top, other]] for top, other in zip(tops, [3, 2, 4, 6], strict=True)]
    text = render(make_prompt(make_stack(experts)), has_color=True)
    found = re.findall(r"38;5;(\d+)m(\d)\x1b\[0m\x1b\[38;5;(\d+)m (\d)", text)
    assert [(int(top), int(other)) for _, top, _, other in found] == [
        tuple(chosen) for ((chosen),) in experts
    ]
    assert all(first == second for first, _, second, _ in found)
    colors = [first for first, _, _, _ in found]
    assert colors[1] == colors[3]
    assert len(set(colors)) == len(set(tops))


def test_colours_repeat_after_the_last() -> None:
    num_colors = len(EXPERT_COLORS)
    experts = [[[3]], [[3 + num_colors]]]
    layers = describe_layers(1, num_experts=64)
    text = render(make_prompt(make_stack(experts)), layers=layers, has_color=True)
    first, second = re.findall(r"38;5;(\d+)m *\d+\x1b", text)
    assert first == second


def measure_luminance(color: str) -> float:
    """Return the relative luminance of a colour (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("color", EXPERT_COLORS)
def test_every_colour_is_legible_on_black_and_on_white(color: str) -> None:
    luminance = measure_luminance(color)
    on_white, on_black = 1.05 / (luminance + 0.05), (luminance + 0.05) / 0.05
    # WCAG's least contrast for large or bold text and for graphics.
    assert min(on_white, on_black) >= 3
    # One of the 256 that terminals have, so that none is replaced by its neighbour.
    assert (
        Color.parse(color).downgrade(ColorSystem.EIGHT_BIT).get_truecolor()
        == Color.parse(color).get_truecolor()
    )


def test_no_two_colours_are_the_same() -> None:
    assert 8 <= len(set(EXPERT_COLORS)) == len(EXPERT_COLORS) <= 16


@pytest.mark.parametrize(
    ("width", "has_color"), list(product((60, 80, None), (False, True))), ids=str
)
def test_foreign_text_neither_steers_a_terminal_nor_breaks_a_line(
    width: int | None, has_color: bool
) -> None:
    hostile = "\x1b[2J\u202e\n日本語日本語日本語日本語日本語"
    stack = make_stack([[[1, 2]]] * 2, pieces=[hostile, ""], stack=hostile)
    excerpt = make_prompt(
        stack, stack, prompt=hostile * 50, written=hostile, prompt_id=hostile, domain=hostile
    )
    text = render(
        excerpt,
        excerpt,
        layers=describe_layers(1, stack=hostile),
        width=width,
        has_color=has_color,
    )
    plain = ESCAPE.sub("", text) if has_color else text
    assert {letter for letter in plain if not letter.isprintable()} == {"\n"}
    assert max(map(cell_len, plain.splitlines())) <= (width or 80)
