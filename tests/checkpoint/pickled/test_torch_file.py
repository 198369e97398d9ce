"""Files of torch are read as torch reads them, or refused."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.headers.tensor_headers import TensorHeader
from moetool.checkpoint.pickled.torch_file import (
    ExecutingPickleError,
    read_torch_file,
)
from moetool.errors import InputError

# torch's dtypes by safetensors' names, as the safetensors library has them.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    # Without a storage class of their name.
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
NEWER = ("U16", "U32", "U64", "F8_E4M3", "F8_E5M2", "F8_E8M0")


def save(value: Any, path: Path, *, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


def read(path: Path) -> dict[str, TensorHeader]:
    return {tensor.name: tensor for tensor in read_torch_file(path, file=path.name).headers.tensors}


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_are_read_as_torch_reads_them(is_zip: bool, tmp_path: Path) -> None:
    made = {
        name: torch.zeros(2, 3 + number, dtype=dtype)
        for number, (name, dtype) in enumerate(DTYPES.items())
        if is_zip or name not in NEWER
    }
    state: Any = OrderedDict(
        {
            **made,
            "scalar": torch.tensor(1.0),
            "empty": torch.zeros(0, 4),
            "parameter": torch.nn.Parameter(torch.zeros(5)),
            "transposed": torch.zeros(3, 4).t(),
            "slice": torch.zeros(10, 10)[2:4, 3:5],
        }
    )
    state["attributed"] = torch.nn.Parameter(torch.zeros(7))
    state["attributed"].note = "kept"
    state._metadata = OrderedDict(version=1)
    path = save(state, tmp_path / "pytorch_model.bin", is_zip=is_zip)

    found = read(path)

    loaded = torch.load(path, weights_only=False)
    assert {name: each.shape for name, each in found.items()} == {
        name: tuple(each.shape) for name, each in loaded.items()
    }
    assert {name: each.num_bytes for name, each in found.items()} == {
        name: each.numel() * each.element_size() for name, each in loaded.items()
    }
    for name in made:
        assert DTYPES[found[name].dtype] == loaded[name].dtype
        assert found[name].dtype == name


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_tied_tensor_is_counted_once(is_zip: bool, tmp_path: Path) -> None:
    embedding = torch.zeros(8, 4)
    state = {"embed_tokens.weight": embedding, "lm_head.weight": embedding}

    assert list(read(save(state, tmp_path / "x.bin", is_zip=is_zip))) == ["embed_tokens.weight"]


def test_tensors_next_to_each_other_in_one_storage_are_counted_separately(tmp_path: Path) -> None:
    fused = torch.zeros(6, 4)
    state = {"q": fused[:2], "k": fused[2:4], "v": fused[4:]}

    assert [each.shape for each in read(save(state, tmp_path / "x.bin")).values()] == [(2, 4)] * 3


def test_tensors_that_share_a_part_of_their_data_are_refused(tmp_path: Path) -> None:
    fused = torch.zeros(6, 4)
    path = save({"qkv": fused, "q": fused[:2]}, tmp_path / "x.bin")

    with pytest.raises(InputError) as caught:
        read(path)
    assert "share parts of their data" in caught.value.facts[0]


def test_an_expanded_tensor_is_refused_because_its_elements_are_one(tmp_path: Path) -> None:
    path = save({"a": torch.zeros(1).expand(1000)}, tmp_path / "x.bin")

    with pytest.raises(InputError) as caught:
        read(path)
    assert "the same data" in caught.value.facts[0]


def test_the_state_dict_of_a_training_run_is_read_alone(tmp_path: Path) -> None:
    model = {"layers": {"0": {"weight": torch.zeros(2, 2)}}}
    whole = {"model": model, "optimizer": {"state": {0: torch.zeros(9)}}, "step": 7}
    path = save(whole, tmp_path / "x.pt")

    found = read_torch_file(path, file="x.pt")

    assert [tensor.name for tensor in found.headers.tensors] == ["layers.0.weight"]
    assert found.others == ("optimizer",)


class Runs:
    """Makes a folder wherever Python unpickles it."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_file_that_would_run_something_runs_nothing(is_zip: bool, tmp_path: Path) -> None:
    made = tmp_path / "made"
    state = {"weight": torch.zeros(2), "bias": Runs(made)}
    path = save(state, tmp_path / "x.bin", is_zip=is_zip)

    with pytest.raises(ExecutingPickleError) as caught:
        read(path)

    assert "posix.mkdir" in caught.value.message or "nt.mkdir" in caught.value.message
    assert "safetensors" in caught.value.hint
    assert not made.exists()
    with suppress(Exception):
        torch.load(path, weights_only=False)
    assert made.exists(), "the pickle must be one that Python obeys"


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path: Path) -> None:
    with pytest.raises(ExecutingPickleError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read(save(torch.nn.Linear(2, 2), tmp_path / "x.pt"))


STATE = {"a.weight": torch.zeros(4, 4), "b.weight": torch.zeros(3, dtype=torch.bfloat16)}


def dump(*, is_zip: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(STATE, buffer, _use_new_zipfile_serialization=is_zip)
    return buffer.getvalue()


def rewrite(change: Callable[[dict[str, bytes]], object], **options: Any) -> bytes:
    """Return the archive with its entries changed, written again by Python."""
    with zipfile.ZipFile(io.BytesIO(dump())) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def with_end(**fields: bytes) -> bytes:
    """Return the archive with changed fields in its end, which tells where its list is."""
    content = bytearray(rewrite(lambda _: None))
    end = content.rfind(b"PK\x05\x06")
    for name, value in fields.items():
        at = end + {"list_bytes": 12, "list_start": 16, "num_entries": 10}[name]
        content[at : at + len(value)] = value
    return bytes(content)


def replace_pickle(content: bytes) -> bytes:
    return rewrite(lambda entries: entries.update({"archive/data.pkl": content}))


# By what is wrong: a file, and what is said of it.
BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "neither as a zip archive"),
    "text": (lambda: b"version 1\n", "neither as a zip archive"),
    "cut in half": (lambda: dump()[:-200], "an archive that can't be read"),
    "the first bytes": (lambda: dump()[:4], "an archive that can't be read"),
    "older, cut": (lambda: dump(is_zip=False)[:-1], "bytes of data, where its tensors take"),
    "older, cut early": (lambda: dump(is_zip=False)[:120], "it breaks off"),
    "older, longer": (lambda: dump(is_zip=False) + b"\0", "bytes of data, where its tensors take"),
    "no pickle": (lambda: rewrite(lambda e: e.pop("archive/data.pkl")), "without one data.pkl"),
    "two folders": (
        lambda: rewrite(lambda e: e.update({"other/data.pkl": b"N."})),
        "without one data.pkl",
    ),
    "data missing": (lambda: rewrite(lambda e: e.pop("archive/data/0")), "does not hold"),
    "data short": (
        lambda: rewrite(lambda e: e.update({"archive/data/0": b"\0" * 63})),
        "64 bytes of data, where the archive holds 63",
    ),
    "compressed": (
        lambda: rewrite(lambda _: None, compression=zipfile.ZIP_DEFLATED),
        "compressed entries",
    ),
    "a bomb": (
        lambda: rewrite(
            lambda e: e.update({"archive/data/0": b"\0" * 5_000_000}),
            compression=zipfile.ZIP_DEFLATED,
        ),
        "compressed entries",
    ),
    "a script": (
        lambda: rewrite(lambda e: e.update({"archive/constants.pkl": b"N."})),
        "TorchScript",
    ),
    "a list of 4 GB": (
        lambda: with_end(list_bytes=b"\xfe\xff\xff\xff"),
        "a list of entries longer",
    ),
    "a list elsewhere": (lambda: with_end(list_start=b"\xff\xff\xff\x7f"), "damaged"),
    "no state dict": (lambda: replace_pickle(pickle.dumps([1])), "a list in place of a state dict"),
    "no tensors": (lambda: replace_pickle(pickle.dumps({"a": 1})), "no tensors"),
    "not a pickle": (lambda: replace_pickle(b"\xff\xff"), "opcode that torch never writes"),
}


@pytest.mark.parametrize(("make", "fact"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(make: Callable[[], bytes], fact: str, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(make())

    with pytest.raises(InputError) as caught:
        read(path)

    assert caught.value.message == f"'{path}' is not a complete file of torch.save."
    assert fact in caught.value.facts[0]


def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(dump())
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(archive.namelist()[0], b"N.")

    with pytest.raises(InputError) as caught:
        read(path)
    assert "an entry twice" in caught.value.facts[0]


def make_tensor_pickle(*, shape: str, strides: str = "(I1\nt", offset: int = 0) -> bytes:
    """Return a state dict of one tensor in the first storage, its sizes in opcodes as given."""
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI16\ntQ"
    places = f"I{offset}\n{shape}{strides}"
    return b"}Va\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + places.encode() + b"I00\n}tRs."


ODD_TENSORS = {
    "a shape of 2^80": (
        "(" + f"I{2**40}\n" * 2 + "t",
        "(I0\nI0\nt",
        0,
        "more elements than 64 bits",
    ),
    "a shape of 2^70": (f"(I{2**70}\nt", "(I1\nt", 0, "not a tuple of sizes"),
    "a negative size": ("(I-1\nt", "(I1\nt", 0, "not a tuple of sizes"),
    "a size that is a truth": ("(I01\nt", "(I1\nt", 0, "not a tuple of sizes"),
    "a size that is a fraction": ("(F1.0\nt", "(I1\nt", 0, "not a tuple of sizes"),
    "a thousand dimensions": ("(" + "I1\n" * 1000 + "t", "(I1\nt", 0, "not a tuple of sizes"),
    "one stride too many": ("(I16\nt", "(I1\nI1\nt", 0, "a place that is not a place"),
    "past the end of its data": ("(I17\nt", "(I1\nt", 0, "larger than its data"),
    "a stride past the end": ("(I2\nt", "(I16\nt", 0, "larger than its data"),
    "an offset past the end": ("(I1\nt", "(I1\nt", 16, "larger than its data"),
    "a negative offset": ("(I1\nt", "(I1\nt", -1, "a place that is not a place"),
}


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "fact"), ODD_TENSORS.values(), ids=ODD_TENSORS
)
def test_a_tensor_that_its_data_contradicts_is_refused(
    shape: str, strides: str, offset: int, fact: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(replace_pickle(make_tensor_pickle(shape="(I16\nt")))
    assert read(path)["a"].shape == (16,)
    path.write_bytes(
        replace_pickle(make_tensor_pickle(shape=shape, strides=strides, offset=offset))
    )

    with pytest.raises(InputError) as caught:
        read(path)
    assert fact in caught.value.facts[0]


def test_dicts_in_each_other_end_the_search(tmp_path: Path) -> None:
    inner: dict[str, Any] = {"a": 1}
    for _ in range(60):
        inner = {str(number): inner for number in range(8)}
    path = tmp_path / "x.bin"
    path.write_bytes(replace_pickle(pickle.dumps(inner)))

    with pytest.raises(InputError) as caught:
        read(path)
    assert "nested too deeply" in caught.value.facts[0]


@pytest.mark.parametrize("is_zip", [True, False])
@settings(max_examples=60)
@given(data=st.data())
def test_a_file_with_odd_bytes_is_refused_or_read(
    is_zip: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(dump(is_zip=is_zip))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(content), len(content), data.draw(st.integers(0, 2000))]))
    path = tmp_path_factory.getbasetemp() / f"odd-{is_zip}.bin"
    path.write_bytes(content[:end])

    with suppress(InputError):
        read(path)
