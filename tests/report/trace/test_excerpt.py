"""The text that a model read and wrote, and the table of its tokens' experts."""

from __future__ import annotations

import re
from itertools import product

import pytest
from rich.cells import cell_len

from tests.report.trace.excerpts import (
    ESCAPE,
    describe_layers,
    make_prompt,
    make_stack,
    make_wide_stack,
    render,
)


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
