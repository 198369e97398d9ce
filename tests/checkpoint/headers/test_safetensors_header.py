"""Safetensors headers are read as the safetensors library reads them, or refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.headers.safetensors_header import parse_header, read_header
from moetool.errors import InputError
from tests.checkpoint.safetensors_files import (
    BITS_PER_ELEMENT,
    Entry,
    join_file,
    lay_out,
    read_with_library,
)

Reading = dict[str, tuple[str, list[int]]]


def read(content: bytes) -> tuple[Reading | None, Reading | None]:
    """Return what we and what the library read in a file; None for a refusal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        theirs = read_with_library(path)
        try:
            headers = read_header(path, file=path.name)
        except InputError as error:
            assert_is_put_well(error, path)
            return None, theirs
    assert headers.file_bytes == {"model.safetensors": len(content)}
    ours = {tensor.name: (tensor.dtype, list(tensor.shape)) for tensor in headers.tensors}
    return ours, theirs


def assert_is_put_well(error: InputError, path: Path) -> None:
    """Check that a refusal names the file and shows, in a line, what was seen of it."""
    assert error.message == f"'{path}' is not a complete safetensors file."
    assert error.hint.startswith("Download it again")
    (fact,) = error.facts
    assert fact.startswith("seen: ")
    assert len(fact) < 400
    assert "\n" not in fact


def has_one_meaning(content: bytes) -> bool:
    """Return whether a header that the library reads can be read in one way only."""
    once = True

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal once
        once = once and len(dict(pairs)) == len(pairs)
        return dict(pairs)

    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length], object_pairs_hook=build)
    header.pop("__metadata__", None)
    fields = {"dtype", "shape", "data_offsets"}
    return once and all(
        isinstance(entry, dict) and set(entry) == fields and isinstance(entry["dtype"], str)
        for entry in header.values()
    )


def assert_agrees(content: bytes) -> None:
    """Check that a file reads as the library reads it, or is refused where it should be."""
    ours, theirs = read(content)
    if theirs is not None and has_one_meaning(content):
        assert ours == theirs
    else:
        assert ours is None


sizes = st.sampled_from([0, 1, 2, 3, 8, 24])
shapes = st.lists(sizes, max_size=3)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
dtypes = st.sampled_from(sorted(BITS_PER_ELEMENT))


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """A header and the bytes of its data: its tensors in any order, whole bytes each."""
    tensors = draw(st.dictionaries(names, st.tuples(dtypes, shapes), max_size=4))
    whole = {}
    for name, (dtype, shape) in tensors.items():
        if name != "__metadata__":
            whole[name] = (dtype, [*shape, 8] if BITS_PER_ELEMENT[dtype] % 8 else shape)
    header, data_bytes = lay_out(whole)
    entries = list(header.items())
    if draw(st.booleans()):
        metadata = draw(st.dictionaries(names, names, max_size=2))
        entries.append(("__metadata__", metadata))
    return dict(draw(st.permutations(entries))), data_bytes


@settings(deadline=None)
@given(headers(), st.sampled_from(["", " ", "\n\t \r"]), st.booleans())
def test_a_valid_header_reads_as_the_library_reads_it(
    made: tuple[dict[str, Any], int], padding: str, is_ascii: bool
) -> None:
    header, data_bytes = made
    text = padding + json.dumps(header, ensure_ascii=is_ascii) + padding

    ours, theirs = read(join_file(text.encode(), data_bytes=data_bytes))

    assert theirs is not None
    assert ours == theirs


ODD_VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 2**63, 2**64 - 1, 2**64, 10**400, 0.0, 2.0, 1e300),
    *("", "U8", "F32", "u8", [], {}, [True], [0, 8], [8, 0], [0, 1, 2], [-1, 7], {"U8": None}),
    *(["U8", [8], [0, 8]], {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
]


@settings(deadline=None, max_examples=300)
@given(headers(), st.data())
def test_a_header_with_an_odd_field_is_refused_or_reads_as_the_library_reads_it(
    made: tuple[dict[str, Any], int], data: st.DataObject
) -> None:
    header, data_bytes = made
    value = data.draw(st.sampled_from(ODD_VALUES))
    described = [name for name in header if name != "__metadata__"]
    is_field = data.draw(st.booleans())
    if described and is_field:
        entry = header[data.draw(st.sampled_from(described))]
        field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))
        old = entry.get(field)
        if isinstance(old, list) and old and data.draw(st.booleans()):
            old[data.draw(st.integers(0, len(old) - 1))] = value
        else:
            entry[field] = value
    else:
        header[data.draw(st.sampled_from(["a", "__metadata__", *described]))] = value
    slack = data.draw(st.sampled_from([0, 0, 0, 1, -1, 8]))

    assert_agrees(join_file(header, data_bytes=max(0, data_bytes + slack)))


ODD_BYTES = b'"{}[],:-.0123eU \\\x00\xff'


@settings(deadline=None, max_examples=300)
@given(headers(), st.data())
def test_a_file_with_odd_bytes_is_refused_or_reads_as_the_library_reads_it(
    made: tuple[dict[str, Any], int], data: st.DataObject
) -> None:
    header, data_bytes = made
    content = bytearray(join_file(header, data_bytes=data_bytes))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        rest = place + data.draw(st.integers(0, 2))
        odd = data.draw(st.sampled_from(ODD_BYTES))
        content[place:rest] = bytes([odd]) * data.draw(st.integers(0, 2))
    if data.draw(st.booleans()):
        length = len(content) - 8 - data_bytes
        content[:8] = max(0, length).to_bytes(8, "little")

    assert_agrees(bytes(content))


TWO: Entry = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
A_TWO = json.dumps(TWO).encode()


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        pytest.param(b"", "0 bytes, too few for a header", id="empty"),
        pytest.param(b"\0" * 7, "7 bytes, too few", id="seven bytes"),
        pytest.param(b"\0" * 8, "can't be read", id="no header"),
        pytest.param(b"\xff" * 8, "where 100000000 are allowed", id="the longest of headers"),
        pytest.param(
            (100_000_001).to_bytes(8, "little"), "are allowed", id="a header over the limit"
        ),
        pytest.param(
            (100_000_000).to_bytes(8, "little"), "in a file of 8", id="a header at the limit"
        ),
        pytest.param(
            (100).to_bytes(8, "little") + b"{}", "100 bytes in a file of 10", id="past the end"
        ),
        pytest.param(join_file(b"\xff{}", data_bytes=0), "can't be read", id="no UTF-8"),
        pytest.param(join_file(b"[]", data_bytes=0), "not a JSON object", id="a list"),
        pytest.param(join_file(b"[" * 90_000, data_bytes=0), "too deeply", id="deep"),
        pytest.param(
            join_file(b'{"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}", data_bytes=0),
            "too deeply",
            id="deep and balanced",
        ),
        pytest.param(
            join_file(b'{"a": {"shape": [' + b"9" * 5000 + b"]}}", data_bytes=0),
            "can't be read",
            id="a number of 5000 digits",
        ),
        pytest.param(
            join_file(b'{"a": %s, "a": %s}' % (A_TWO, A_TWO), data_bytes=2),
            "'a' twice",
            id="a name twice",
        ),
        pytest.param(
            join_file(b'{"a": {"dtype": "U8", ' + A_TWO[1:] + b"}", data_bytes=2),
            "'dtype' twice",
            id="a field twice",
        ),
        pytest.param(
            join_file({"a": {**TWO, "strides": [1]}}, data_bytes=2), "without exactly", id="field"
        ),
        pytest.param(join_file({"a": TWO, "b": TWO}, data_bytes=2), "'b' overlaps", id="overlap"),
        pytest.param(
            join_file({"a": {**TWO, "data_offsets": [1, 3]}}, data_bytes=3), "a gap", id="hole"
        ),
        pytest.param(join_file({"a": TWO}, data_bytes=3), "3 bytes of data", id="too long"),
        pytest.param(join_file({"a": TWO}, data_bytes=1), "describes 2", id="too short"),
        pytest.param(
            join_file({"a": {**TWO, "data_offsets": [-2, 0]}}, data_bytes=2), "sign", id="negative"
        ),
        pytest.param(
            join_file({"a": {**TWO, "data_offsets": [2, 0]}}, data_bytes=2), "", id="reversed"
        ),
        pytest.param(
            join_file({"a": {**TWO, "shape": [True, 2]}}, data_bytes=2), "not a list of", id="true"
        ),
        pytest.param(
            join_file({"a": {**TWO, "shape": [3]}}, data_bytes=2), "do not fit", id="wrong shape"
        ),
        pytest.param(
            join_file({"a": {**TWO, "dtype": "U4"}}, data_bytes=2), "dtype 'U4'", id="dtype"
        ),
        pytest.param(
            join_file(
                {"a": {"dtype": "U8", "shape": [2**63, 4, 0], "data_offsets": [0, 0]}},
                data_bytes=0,
            ),
            "64 bits",
            id="too many elements before a zero",
        ),
        pytest.param(
            join_file({"__metadata__": {"a": 1}}, data_bytes=0), "__metadata__", id="metadata"
        ),
        pytest.param(
            join_file(b'{"\\ud800": ' + A_TWO + b"}", data_bytes=2), "half a", id="half a character"
        ),
        pytest.param(join_file({"n" * 9999: TWO}, data_bytes=1), "describes 2", id="a long name"),
        pytest.param(
            join_file({"n" * 9999: 0}, data_bytes=1), "nnn without", id="a long name to blame"
        ),
    ],
)
def test_a_broken_file_is_refused_by_what_is_wrong_with_it(
    content: bytes, fact: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_header(path, file=path.name)

    assert fact in caught.value.facts[0]
    assert read(content)[0] is None


@pytest.mark.parametrize("dtype", sorted(BITS_PER_ELEMENT))
def test_every_dtype_of_the_library_is_read_with_its_bytes(dtype: str) -> None:
    header, data_bytes = lay_out({"a": (dtype, [3, 8])})
    content = json.dumps(header).encode()

    (tensor,) = parse_header(content, file="a", file_bytes=8 + len(content) + data_bytes)

    assert (tensor.dtype, tensor.shape, tensor.num_elements) == (dtype, (3, 8), 24)
    assert tensor.num_bytes == 3 * BITS_PER_ELEMENT[dtype] == data_bytes
    assert read(join_file(content, data_bytes=data_bytes)) == ({"a": (dtype, [3, 8])},) * 2


@pytest.mark.parametrize(
    ("shape", "is_read"),
    [
        ([0, 2**64 - 1], True),
        ([2**64 - 1, 0], True),
        ([0, 2**64 - 1, 2], True),
        ([0, 2**64], False),
        ([2**32, 2**32, 0], False),
        ([2**32, 2**31, 0], True),
    ],
)
def test_an_empty_tensor_is_as_large_as_64_bits_count(shape: list[int], is_read: bool) -> None:
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]}

    ours, theirs = read(join_file({"a": entry}, data_bytes=0))

    assert ours == theirs == ({"a": ("U8", shape)} if is_read else None)


def test_tensors_come_in_the_order_of_their_data() -> None:
    header, data_bytes = lay_out({"z": ("U8", [2]), "empty": ("F32", [0]), "a": ("I64", [])})
    content = json.dumps(dict(reversed(header.items()))).encode()

    tensors = parse_header(content, file="a", file_bytes=8 + len(content) + data_bytes)

    assert [tensor.name for tensor in tensors] == ["z", "empty", "a"]
    assert [tensor.num_bytes for tensor in tensors] == [2, 0, 8]


def test_a_file_that_is_a_folder_or_gone_is_refused(tmp_path: Path) -> None:
    for path, fact in ((tmp_path, "Is a directory"), (tmp_path / "nothing", "No such file")):
        with pytest.raises(InputError, match=f"'{path}' is not a complete") as caught:
            read_header(path, file="model.safetensors")
        assert caught.value.facts[0].startswith(f"seen: {fact}")


def test_a_header_of_millions_of_values_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(join_file(b'{"a":[' + b"[]," * 2_500_000 + b"[]]}", data_bytes=0))
    with pytest.raises(InputError) as caught:
        read_header(path, file="model.safetensors")
    assert "more than 5,000,000 values" in caught.value.facts[0]
