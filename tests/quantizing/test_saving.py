"""Quantized checkpoints: their files, what they hold, and what becomes of a run that fails."""

from __future__ import annotations

import errno
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizer_bnb_8bit import Bnb8BitHfQuantizer

from moetool import inspect_model, load_quantized, quantize_checkpoint
from moetool.checkpoint.headers.local_headers import read_local_headers
from moetool.errors import InputError, OutOfMemoryError, UsageError
from moetool.library import quantize_checkpoint as quantize_module
from moetool.quantizing.saving.reloading import find_operation
from moetool.quantizing.saving.save import save_quantized
from moetool.quantizing.saving.shards import ShardWriter
from moetool.quantizing.saving.stored_weights import StoredWeight, list_stored
from tests.families.quantized_saving import compare_tensors
from tests.tiny_models import build_model

FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("nf4", {}),
    ("fp4", {"double_quant": True}),
    ("int8", {"quantize_experts": False}),
]


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in bfloat16 and two files, with a tokenizer's file next to them."""
    folder = tmp_path_factory.mktemp("olmoe")
    build_model("olmoe").bfloat16().save_pretrained(folder, max_shard_size="200KB")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(("quantization", "options"), FORMATS)
def test_a_saved_model_is_the_one_quantized_while_loading(
    quantization: str, options: dict[str, Any], olmoe: Path, tmp_path: Path
) -> None:
    target = tmp_path / "saved"
    written = quantize_checkpoint(olmoe, target, quantization, **options)
    stored = sum(tensor.num_bytes for tensor in _headers(target).tensors)
    assert written.tensor_bytes == stored < written.source_tensor_bytes
    expected = load_quantized(olmoe, quantization, **options).state_dict()
    # transformers has the format since moetool was imported.
    compare_tensors(AutoModelForCausalLM.from_pretrained(target).state_dict(), expected)
    compare_tensors(load_quantized(target).state_dict(), expected)
    assert (target / "tokenizer.json").read_text("utf-8") == "{}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]
    for source in ("skeleton", "headers"):
        plain, packed = (inspect_model(str(path), source=source) for path in (olmoe, target))
        assert plain.parameters is not None
        assert packed.parameters is not None
        assert packed.parameters.total == plain.parameters.total
        assert packed.parameters.active == plain.parameters.active
    seen = inspect_model(str(target))
    assert seen.bits_per_weight == 8 * stored / sum(p.numel() for p in _build(olmoe))
    assert inspect_model(str(olmoe)).bits_per_weight is None


def _build(folder: Path) -> Iterator[torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).parameters()


def _headers(folder: Path) -> Any:
    headers = read_local_headers(folder)
    assert headers is not None
    return headers


@pytest.mark.parametrize(("quantization", "options"), FORMATS)
def test_transformers_saves_what_loads_again_bit_for_bit(
    quantization: str, options: dict[str, Any], olmoe: Path, tmp_path: Path
) -> None:
    model = load_quantized(olmoe, quantization, device="cpu", **options)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("first", "second"):
        with torch.inference_mode():
            # A run changes what bitsandbytes' layers hold.
            model(torch.arange(4).unsqueeze(0))
        model.save_pretrained(tmp_path / name)
        loader: Any = AutoModelForCausalLM.from_pretrained if name == "first" else load_quantized
        model = loader(tmp_path / name)
        compare_tensors(model.state_dict(), expected)


def test_plain_weights_are_converted_to_the_dtype_asked_for(olmoe: Path, tmp_path: Path) -> None:
    quantize_checkpoint(olmoe, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", dtype="float32")
    dtypes = {parameter.dtype for parameter in loaded.parameters()}
    assert dtypes == {torch.float32, torch.uint8}


def test_weights_of_one_expert_are_in_memory_at_a_time(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, alive, most = StoredWeight._read, list[Any](), 0

    def watch(self: StoredWeight) -> torch.Tensor:
        nonlocal most
        tensor = read(self)
        if ".experts." in self.header.name:
            alive[:] = [*(each for each in alive if each() is not None), weakref.ref(tensor)]
            most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(StoredWeight, "_read", watch)
    quantize_checkpoint(olmoe, tmp_path / "saved")
    assert most == 2


def test_a_checkpoint_may_take_several_files(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = save_quantized.__wrapped__.__kwdefaults__  # type: ignore[attr-defined]
    monkeypatch.setitem(options, "shard_bytes", 40_000)
    written = quantize_checkpoint(olmoe, tmp_path / "saved")
    files = sorted(path.name for path in (tmp_path / "saved").glob("*.safetensors"))
    assert len(files) == written.num_files > 2
    index = json.loads((tmp_path / "saved" / "model.safetensors.index.json").read_text("utf-8"))
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == written.tensor_bytes
    expected = load_quantized(olmoe).state_dict()
    compare_tensors(load_quantized(tmp_path / "saved").state_dict(), expected)


def test_a_run_that_fails_leaves_nothing(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, names = ShardWriter.write, []

    def fail_later(self: ShardWriter, name: str, tensor: torch.Tensor) -> None:
        assert (tmp_path / "saved.partial").is_dir()
        assert not (tmp_path / "saved").exists()
        names.append(name)
        if len(names) == 5:
            raise error
        write(self, name, tensor)

    monkeypatch.setattr(ShardWriter, "write", fail_later)
    error: BaseException = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UsageError, match="No space left on device"):
        quantize_checkpoint(olmoe, tmp_path / "saved")
    assert len(names) == 5
    assert not any(tmp_path.iterdir())
    error, names[:] = KeyboardInterrupt(), []
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(olmoe, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def test_what_a_killed_run_left_behind_is_replaced_and_other_folders_are_not(
    olmoe: Path, tmp_path: Path
) -> None:
    partial = tmp_path / "saved.partial"
    partial.mkdir()
    (partial / "mine").touch()
    with pytest.raises(UsageError, match="no run of moetool quantize left it behind"):
        quantize_checkpoint(olmoe, tmp_path / "saved")
    (partial / ".moetool-lock").touch()
    quantize_checkpoint(olmoe, tmp_path / "saved", "int8")
    assert not partial.exists()
    assert not (tmp_path / "saved" / "mine").exists()
    with pytest.raises(UsageError, match="exists"):
        quantize_checkpoint(olmoe, tmp_path / "saved")
    quantize_checkpoint(olmoe, tmp_path / "saved", overwrite=True)
    config = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    assert config["quantization_config"]["quantization"] == "nf4"
    with pytest.raises(UsageError, match="isn't a folder that moetool quantize wrote"):
        quantize_checkpoint(olmoe, olmoe, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_too_little_memory_is_known_before_anything_is_read(
    olmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_module, "find_available_bytes", lambda: 100_000)
    with pytest.raises(OutOfMemoryError, match=r"while it is quantized, and 97\.7 KiB are"):
        quantize_checkpoint(olmoe, tmp_path / "saved")
    assert not any(tmp_path.iterdir())


def _drop(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.experts.0.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def _reshape(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name][1:].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def _pack(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = "model.layers.1.self_attn.q_proj.weight"
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_drop, "can't be quantized"),
        (_reshape, "do not match its config.json: 1 tensor is missing or of another shape"),
        (_pack, "are quantized already"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    damage: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    build_model("olmoe").save_pretrained(tmp_path / "source")
    damage(tmp_path / "source")
    with pytest.raises(InputError, match=words):
        quantize_checkpoint(tmp_path / "source", tmp_path / "saved")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_weight_without_its_scales_is_refused(olmoe: Path, tmp_path: Path) -> None:
    quantize_checkpoint(olmoe, tmp_path / "saved", "int8")
    path = tmp_path / "saved" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.q_proj.SCB"]
    del tensors["model.layers.1.self_attn.q_proj.weight_format"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError):
        load_quantized(tmp_path / "saved")


def test_another_format_is_not_laid_over_the_saved_one(olmoe: Path, tmp_path: Path) -> None:
    quantize_checkpoint(olmoe, tmp_path / "saved")
    for act in (
        lambda: load_quantized(tmp_path / "saved", "int8"),
        lambda: quantize_checkpoint(tmp_path / "saved", tmp_path / "again"),
    ):
        with pytest.raises(InputError, match=r"are quantized already \(moetool, nf4\)"):
            act()


DTYPES = (torch.float32, torch.bfloat16, torch.uint8, torch.int8, torch.int64, torch.bool)


@settings(max_examples=20)
@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=8),
    shard_bytes=st.integers(1, 500),
    header_bytes=st.integers(0, 2000),
)
def test_files_hold_what_was_written(
    shapes: list[list[int]],
    shard_bytes: int,
    header_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {
        f"layers.{number}.wéight": torch.randn(shape).to(DTYPES[number % len(DTYPES)])
        for number, shape in enumerate(shapes)
    }
    with ShardWriter(folder, header_bytes=header_bytes, shard_bytes=shard_bytes) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()
    read: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            read |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    compare_tensors(read, tensors)
    stored = list_stored(folder, _headers(folder))
    compare_tensors({name: tensor[...] for name, tensor in stored.items()}, tensors)
    shutil.rmtree(folder)


@pytest.mark.parametrize("kind", [Bnb4BitHfQuantizer, Bnb8BitHfQuantizer])
def test_the_operation_is_found_where_transformers_has_it_in_a_conversion_only(kind: Any) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True)
    linears = kind(config, pre_quantized=True)
    older = SimpleNamespace(get_weight_conversions=linears.get_weight_conversions)
    operation, names = find_operation(linears)
    assert len(names) > 1
    found = find_operation(older)
    assert (found[0], sorted(found[1])) == (operation, sorted(names))
