"""Checkpoints that lack something, are damaged or would run code are refused by their folder."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as dcp

from moetool.checkpoint.layouts.read import read_without_config
from moetool.errors import InputError
from tests.checkpoint.layouts.saved import SAVE, save_deepspeed, save_distributed, save_megatron

LAST = "global_step10"


def describe(size: tuple[int, ...], *, chunk: tuple[int, ...] | None = None) -> Any:
    return dcp.TensorStorageMetadata(
        properties=dcp.TensorProperties(dtype=torch.float32),
        size=torch.Size(size),
        chunks=[dcp.ChunkStorageMetadata(torch.Size([0] * len(size)), torch.Size(chunk or size))],
    )


def write_metadata(folder: Path, tensors: Any, *, files: Any = None) -> None:
    whole = dcp.Metadata(state_dict_metadata=tensors, storage_data=files or {})
    (folder / ".metadata").write_bytes(pickle.dumps(whole))


class Runs:
    """Makes a folder wherever Python unpickles it."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def stack_layers(folder: Path, size: tuple[int, ...]) -> None:
    write_metadata(folder, {"decoder.layers.mlp.router.weight": describe(size)})
    (folder / "common.pt").write_bytes(b"")


def lose_expert(folder: Path) -> None:
    save_deepspeed(folder)
    (folder / LAST / "layer_1_expert_2_mp_rank_00_model_states.pt").unlink()


def lose_rest(folder: Path) -> None:
    save_deepspeed(folder)
    (folder / LAST / "mp_rank_00_model_states.pt").unlink()


def split_by_rank(folder: Path) -> None:
    save_deepspeed(folder)
    torch.save({"module": {}}, folder / LAST / "mp_rank_01_model_states.pt")


def split_by_zero(folder: Path) -> None:
    save_deepspeed(folder)
    torch.save({"module": {}}, folder / LAST / "zero_pp_rank_0_mp_rank_00_model_states.pt")


def empty_module(folder: Path) -> None:
    save_deepspeed(folder)
    torch.save(
        {"module": {"lm_head.weight": torch.zeros(0)}}, folder / LAST / "mp_rank_00_model_states.pt"
    )


def swap_experts(folder: Path) -> None:
    save_deepspeed(folder)
    inner = folder / LAST
    source = inner / "layer_0_expert_1_mp_rank_00_model_states.pt"
    (inner / "layer_0_expert_0_mp_rank_00_model_states.pt").write_bytes(source.read_bytes())


def lose_shard(folder: Path) -> None:
    save_distributed(folder)
    next(folder.glob("*.distcp")).unlink()


def cut_metadata(folder: Path) -> None:
    save_distributed(folder)
    path = folder / ".metadata"
    path.write_bytes(path.read_bytes()[:-40])


def point_outside(folder: Path) -> None:
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    index = dcp.MetadataIndex("a", [0])
    write_metadata(folder, {"a": describe((2,))}, files={index: _StorageInfo("../x", 0, 8)})


def write_adapter(folder: Path, config: str) -> None:
    (folder / "adapter_config.json").write_text(config)


def write_empty(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).touch()


def describe_array(folder: Path, described: object) -> None:
    (folder / "_METADATA").touch()
    array = folder / "params.decoder.layers.mlp.wi_0.kernel"
    array.mkdir()
    (array / ".zarray").write_text(json.dumps(described))


# By what is wrong: what writes it, and what is said of it.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard is missing": (lose_shard, "lacks 1 of its 1 weight files"),
    "the metadata is cut": (cut_metadata, "does not describe a distributed checkpoint"),
    "the metadata is empty": (
        lambda folder: (folder / ".metadata").write_bytes(b""),
        "does not describe",
    ),
    "the metadata is a list": (
        lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([1])),
        "does not describe",
    ),
    "only the optimizer": (
        lambda folder: write_metadata(folder, {"optimizer.state.a": describe((2,))}),
        "holds no tensors of a model",
    ),
    "a tensor with a missing part": (
        lambda folder: write_metadata(folder, {"a": describe((4, 4), chunk=(2, 4))}),
        "does not describe",
    ),
    "a tensor of 2^80 elements": (
        lambda folder: write_metadata(folder, {"a": describe((2**40, 2**40))}),
        "does not describe",
    ),
    "files elsewhere": (point_outside, "does not describe"),
    "a million layers": (lambda folder: stack_layers(folder, (10**6, 2)), "does not describe"),
    "no layers": (lambda folder: stack_layers(folder, (0, 2)), "does not describe"),
    "an expert is missing": (lose_expert, "lacks experts of 1 layers"),
    "the rest is missing": (lose_rest, "and not the rest of the model"),
    "tensor parallelism": (split_by_rank, "split among GPUs"),
    "ZeRO-3": (split_by_zero, "split among GPUs"),
    "empty tensors": (empty_module, "split among GPUs"),
    "an expert under another's name": (swap_experts, "does not hold the tensors of the expert"),
    "an adapter without weights": (lambda folder: write_adapter(folder, "{}"), "no weights of the"),
    "an adapter that is not JSON": (
        lambda folder: write_adapter(folder, "{"),
        "can't be read as JSON",
    ),
    "an array without a shape": (
        lambda folder: describe_array(folder, {"dtype": "<f4"}),
        "does not describe an array",
    ),
    "an array of 2^80 elements": (
        lambda folder: describe_array(folder, {"dtype": "<f4", "shape": [2**40, 2**40]}),
        "does not describe an array",
    ),
    "an array of texts": (
        lambda folder: describe_array(folder, {"dtype": "|S5", "shape": [2]}),
        "does not describe an array",
    ),
    "layers along an unknown axis": (
        lambda folder: describe_array(folder, {"dtype": "<f4", "shape": [2, 3]}),
        "don't show along which axis",
    ),
    "OCDBT": (
        lambda folder: write_empty(folder, "_METADATA", "manifest.ocdbt"),
        "does not lead to the arrays of a checkpoint",
    ),
    "no arrays": (lambda folder: (folder / "_METADATA").touch(), "without arrays of a model"),
    "several loose files": (
        lambda folder: write_empty(folder, "a.pt", "b.pt"),
        "holds 2 files of torch.save",
    ),
    "nothing": (lambda _: None, "holds no config.json."),
    "an engine": (
        lambda folder: (folder / "rank0.engine").write_bytes(b"x"),
        "it is an engine of TensorRT",
    ),
    "Flax": (
        lambda folder: (folder / "flax_model.msgpack").write_bytes(b"x"),
        "it is Flax weights (msgpack)",
    ),
    "shards without metadata": (
        lambda folder: (folder / "__0_0.distcp").write_bytes(b"x"),
        "without the .metadata",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused_in_a_sentence_with_a_hint(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    spoil(tmp_path)

    with pytest.raises(InputError) as caught:
        read_without_config(tmp_path)

    assert message in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert caught.value.message.endswith(".")
    assert caught.value.hint.endswith(".")
    assert not any("\n" in line for line in caught.value.facts)


def test_a_metadata_file_that_would_run_something_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    write_metadata(tmp_path, {"a": describe((2,)), "b": Runs(made)})

    with pytest.raises(InputError, match=r"mkdir"):
        read_without_config(tmp_path)

    assert not made.exists()
    with suppress(Exception), (tmp_path / ".metadata").open("rb") as file:
        pickle.load(file)
    assert made.exists(), "the pickle must be one that Python obeys"


def test_arguments_that_name_other_classes_leave_top_k_unknown(tmp_path: Path) -> None:
    save_megatron(tmp_path)
    made = tmp_path / "made"
    torch.save({"args": Runs(made)}, tmp_path / "iter_0000100" / "common.pt")

    found = read_without_config(tmp_path)

    assert found.config == {}
    assert "arguments of the run were not read" in found.notes[1]
    assert not made.exists()


def test_a_name_of_the_last_checkpoint_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    save_deepspeed(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "latest").write_text(f"../{LAST}")

    with pytest.raises(InputError, match=r"holds no config\.json"):
        read_without_config(folder)


@pytest.mark.parametrize("moe", [None, [], "x", {"num_experts": "8", "num_experts_per_tok": None}])
def test_a_params_json_of_odd_types_leaves_top_k_unknown(moe: Any, tmp_path: Path) -> None:
    from moetool.inspection.inspect import inspect_model

    SAVE["Mistral"](tmp_path)
    (tmp_path / "params.json").write_text(json.dumps({"n_layers": True, "dim": "8", "moe": moe}))

    found = inspect_model(tmp_path)

    assert found.num_experts == 4
    assert found.top_k is None
    assert any("params.json does not state" in note for note in found.notes)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcp")
    save_distributed(folder)
    return folder / ".metadata"


@settings(max_examples=60)
@given(data=st.data())
def test_odd_bytes_in_the_metadata_are_refused_or_read(
    data: st.DataObject, metadata: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(metadata.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.getbasetemp() / "odd-metadata"
    folder.mkdir(exist_ok=True)
    (folder / ".metadata").write_bytes(content)

    with suppress(InputError):
        read_without_config(folder)
