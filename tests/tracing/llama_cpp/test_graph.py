"""Graphs whose experts take their decisions from elsewhere than is known are refused."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from moetool.tracing.llama_cpp.faults import WorkerError
from moetool.tracing.llama_cpp.graph import RoutedNodes, find_routed_nodes, read_node
from moetool.tracing.llama_cpp.library import Ggml
from tests.tracing.llama_cpp.stand_in import (
    NUM_EXPERTS,
    TOP_K,
    Tensor,
    Tensors,
    build_layer,
    hidden_states,
)

HIDDEN = hidden_states([1, 2, 3])


def find_nodes(tensors: Tensors, addresses: list[int]) -> dict[int, RoutedNodes]:
    return find_routed_nodes([read_node(tensors, address) for address in addresses])


def build(rename: dict[str, str] | None = None) -> tuple[Tensors, list[int]]:
    tensors = Tensors()
    layers = [build_layer(tensors, layer, HIDDEN, rename=rename) for layer in (1, 2)]
    return tensors, [address for layer in layers for address in layer]


def test_layers_are_found_with_their_sizes() -> None:
    assert find_nodes(*build()) == {
        layer: RoutedNodes(
            layer=layer,
            order=f"ffn_moe_argsort-{layer}",
            weights=f"ffn_moe_weights_norm-{layer}",
            num_experts=NUM_EXPERTS,
            top_k=TOP_K,
        )
        for layer in (1, 2)
    }


def test_a_graph_without_experts_has_no_routed_layers() -> None:
    tensors = Tensors()
    assert find_nodes(tensors, [tensors.add(Tensor("ffn_out-0", "MUL_MAT", HIDDEN))]) == {}


def test_copies_on_other_devices_are_known() -> None:
    tensors, addresses = build()
    at = {tensors.name(address): address for address in addresses}
    for name in ("ffn_moe_topk-1", "ffn_moe_weights_norm-1"):
        copy = tensors.add(Tensor(f"CUDA0#{name}#0", "NONE", HIDDEN))
        for address in addresses:
            tensor = tensors.by_address[address]
            if tensor.operation in ("MUL_MAT_ID", "MUL"):
                tensor.sources = tuple(
                    copy if each == at[name] else each for each in tensor.sources
                )
    assert list(find_nodes(tensors, addresses)) == [1, 2]


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        ({"topk": "chosen"}, "takes its experts from 'ffn_moe_chosen-1'"),
        ({"argsort": "order"}, "layer 1 has 0 tensors 'ffn_moe_argsort-1'"),
        ({"probs": "argsort"}, "layer 1 has 2 tensors 'ffn_moe_argsort-1'"),
        ({"weighted": "scaled"}, "layer 1 has 0 tensors 'ffn_moe_weighted-1'"),
        ({"weights_norm": "gates"}, "'ffn_moe_weighted-1' takes no weights that are known"),
    ],
)
def test_other_names_are_refused(rename: dict[str, str], words: str) -> None:
    with pytest.raises(WorkerError, match=words) as refused:
        find_nodes(*build(rename))
    assert refused.value.is_untraceable


def test_a_choice_that_is_not_the_first_of_the_order_is_refused() -> None:
    tensors, addresses = build()
    for address in addresses:
        tensors.by_address[address].view_source = 0
    with pytest.raises(WorkerError, match="is not a part of 'ffn_moe_argsort-1'"):
        find_nodes(tensors, addresses)


def test_weights_of_another_layer_are_refused() -> None:
    tensors, addresses = build()
    at = {tensors.name(address): address for address in addresses}
    tensors.by_address[at["ffn_moe_weighted-1"]].sources = (0, at["ffn_moe_weights_norm-2"])
    with pytest.raises(WorkerError, match="takes no weights that are known"):
        find_nodes(tensors, addresses)


def test_libraries_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="has no library ggml-base"):
        Ggml(tmp_path)


def lay_out(*, name_at: int, data: int) -> tuple[Ggml, ctypes.Array[ctypes.c_char], int]:
    """Return a library whose functions find a tensor's name and data at other places, and one."""
    tensor = ctypes.create_string_buffer(336)
    start = ctypes.addressof(tensor)
    ctypes.memmove(start + 248, (1234).to_bytes(8, "little"), 8)
    ctypes.memmove(start + name_at, b"named", 5)
    ggml = Ggml.__new__(Ggml)
    ggml._is_checked = False
    functions = {"ggml_get_name": lambda _: start + name_at, "ggml_get_data": lambda _: data}
    ggml._library = SimpleNamespace(**functions)  # type: ignore[assignment]
    return ggml, tensor, start


def test_names_and_data_are_where_they_are_known_to_be() -> None:
    ggml, tensor, start = lay_out(name_at=256, data=1234)
    assert ggml.name(start) == "named"
    assert len(tensor) == 336


@pytest.mark.parametrize(("name_at", "data"), [(264, 1234), (256, 4321)])
def test_tensors_that_are_laid_out_in_another_way_are_refused(name_at: int, data: int) -> None:
    ggml, _tensor, start = lay_out(name_at=name_at, data=data)
    with pytest.raises(WorkerError, match="lays out its tensors in another way"):
        ggml.name(start)
