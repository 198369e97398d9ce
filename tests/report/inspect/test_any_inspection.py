"""Pages of inspections with anything at all in them."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from moetool.anatomy.components import Component
from moetool.anatomy.parameters import ActiveDefinition, ActiveRange
from moetool.catalogue.published import ReportedSystem
from moetool.inspection.figures import (
    Difference,
    Files,
    Flops,
    InspectedRow,
    Parameters,
    PublishedFigures,
)
from moetool.inspection.result import Inspection, Source
from moetool.report.inspect.data import render_table_text
from moetool.report.renderer import View

WIDTH = 80


WORDS = st.text(max_size=100)
NUMBERS = st.integers(0, 2**80)
SHARES = st.floats(0, 1)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


RANGES = st.builds(
    lambda fewest, more: ActiveRange(fewest, fewest + more), NUMBERS, st.just(0) | NUMBERS
)
ROWS = st.builds(
    InspectedRow,
    stack=st.sampled_from(["decoder", "encoder", "vision"]) | WORDS,
    layer=maybe(st.integers(0, 10**6)),
    component=st.sampled_from([component.value for component in Component]),
    params=maybe(NUMBERS),
    active_params=maybe(NUMBERS),
    active_params_min=maybe(NUMBERS),
    active_params_max=maybe(NUMBERS),
    dtype=maybe(WORDS),
    bytes=maybe(NUMBERS),
    file_params=maybe(NUMBERS),
    file_dtype=maybe(WORDS),
    file_bytes=maybe(NUMBERS),
)
PARAMETERS = st.builds(
    Parameters,
    total=maybe(st.integers(2**80 * len(Component), 2**90)),
    active=st.fixed_dictionaries({definition: maybe(RANGES) for definition in ActiveDefinition}),
    components=st.fixed_dictionaries({component.value: NUMBERS for component in Component}),
    active_components=st.fixed_dictionaries(
        {component.value: maybe(RANGES) for component in Component}
    ),
    expert_share=maybe(SHARES),
    sparsity=maybe(SHARES),
    num_bytes=maybe(NUMBERS),
    is_tied=maybe(st.booleans()),
)
INSPECTIONS = st.builds(
    Inspection,
    model=WORDS,
    model_type=maybe(WORDS),
    source=st.sampled_from(Source),
    revision=maybe(WORDS),
    num_layers=maybe(NUMBERS),
    num_moe_layers=maybe(NUMBERS),
    num_experts=maybe(NUMBERS | st.lists(maybe(NUMBERS), min_size=1).map(tuple)),
    top_k=maybe(NUMBERS | st.lists(maybe(NUMBERS), min_size=1).map(tuple)),
    num_shared_experts=maybe(NUMBERS),
    anatomy=st.none(),
    quantization=maybe(WORDS),
    dtype=maybe(WORDS),
    parameters=maybe(PARAMETERS),
    rows=st.lists(ROWS, max_size=5).map(tuple),
    flops=maybe(
        st.builds(
            Flops,
            num_prompt_tokens=st.integers(1, 10**7),
            prefill=st.floats(0, 1e24),
            decode=maybe(NUMBERS),
            dense_prefill=maybe(NUMBERS),
            dense_decode=maybe(NUMBERS),
            prefill_ratio=maybe(SHARES),
            decode_ratio=maybe(SHARES),
        )
    ),
    files=maybe(
        st.builds(
            Files,
            num_files=NUMBERS,
            num_tensors=NUMBERS,
            num_bytes=NUMBERS,
            dtype_bytes=st.dictionaries(WORDS, NUMBERS, max_size=3),
            differences=maybe(
                st.lists(
                    st.builds(
                        Difference,
                        what=WORDS,
                        num_tensors=maybe(NUMBERS),
                        file_params=NUMBERS,
                        params=NUMBERS,
                        file_bytes=maybe(NUMBERS),
                        example=maybe(WORDS),
                    ),
                    max_size=2,
                ).map(tuple)
            ),
        )
    ),
    published=maybe(
        st.builds(
            PublishedFigures,
            total_b=maybe(WORDS),
            active_b=maybe(WORDS),
            meets_total=maybe(st.booleans()),
            meets_active=st.lists(st.sampled_from(ActiveDefinition), max_size=3).map(tuple),
            closest_active=maybe(st.sampled_from(ActiveDefinition)),
            source=maybe(WORDS),
            note=maybe(WORDS),
        )
    ),
    reported=maybe(
        st.builds(
            ReportedSystem,
            name=WORDS,
            title=WORDS,
            maker=WORDS,
            total=maybe(WORDS),
            active=maybe(WORDS),
            experts=maybe(WORDS),
            source=WORDS,
            notes=maybe(WORDS),
        )
    ),
    notes=st.lists(WORDS, max_size=2).map(tuple),
)


@settings(deadline=None, max_examples=60)
@given(st.lists(INSPECTIONS, min_size=1, max_size=4), st.booleans())
def test_no_line_is_wider_than_a_terminal_or_steers_it(
    inspections: list[Inspection], per_layer: bool
) -> None:
    text = render_table_text(inspections, View(width=80, per_layer=per_layer))
    for line in text.split("\n"):
        assert cell_len(line) <= WIDTH, line
        assert line == line.rstrip()
        assert line.isprintable(), line
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
