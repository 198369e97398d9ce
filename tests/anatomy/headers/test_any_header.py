"""Headers and statements with anything at all in them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from moetool.anatomy.headers.stored_tensors import read_stored
from tests.anatomy.header_files import Tensors, make_headers

LAYER = "model.layers.0.self_attn.q_proj"


junk: st.SearchStrategy[object] = st.deferred(
    lambda: (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=5)
        | (
            st.lists(junk, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["bits", "group_size", "weights", "num_bits", "config_groups", "a.b"]
                )
                | st.text(max_size=5),
                junk,
                max_size=4,
            )
        )
    )
)
dtypes = st.sampled_from(["BF16", "F8_E4M3", "F8_E8M0", "U8", "I8", "I16", "I32", "U32", "I64"])
parts = st.sampled_from(
    [
        "weight",
        "weight_packed",
        "qweight",
        "scales",
        "qzeros",
        "g_idx",
        "weight_scale",
        "codes",
        "codebooks",
        "_weight_qdata",
        "_weight_scale",
        "weight.quant_map",
        "weight._data",
        "scale",
        "biases",
        "SCB",
        "x_blocks",
        "x_scales",
        "x",
        "x._y",
        "bias",
        "W_q",
        "compressed",
        "",
    ]
)


@given(
    tensors=st.dictionaries(
        parts, st.tuples(dtypes, st.lists(st.integers(0, 40), max_size=4)), max_size=6
    ),
    quantization=junk | st.just({"bits": 4, "group_size": 2}),
    place=st.sampled_from(["quantization_config", "quantization", "compression_config"]),
)
def test_no_header_and_no_statement_ends_in_an_error(
    tensors: Tensors, quantization: object, place: str
) -> None:
    named: Tensors = {f"{LAYER}.{part}": tensor for part, tensor in tensors.items()}
    stored = read_stored(make_headers(named).tensors, {place: quantization})

    assert [tensor.header.name for tensor in stored] == list(named)
    assert all(tensor.num_params is None or tensor.num_params >= 0 for tensor in stored)
