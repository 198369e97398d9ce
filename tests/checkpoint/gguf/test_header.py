"""Headers of GGUF files: complete ones are read, and every false claim in one is refused."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moetool.checkpoint.gguf.cursor import LongList
from moetool.checkpoint.gguf.header import GgufHeader, parse_gguf_header, read_gguf_header
from moetool.checkpoint.gguf.types import REMOVED_TYPES, TENSOR_TYPES
from moetool.errors import InputError
from tests.checkpoint.gguf.writer import (
    TYPES,
    count_bytes,
    moe_metadata,
    moe_tensors,
    pack_header,
    pack_tensor,
    pack_text,
    pack_value,
    write_gguf,
)

METADATA = moe_metadata()
TENSORS = moe_tensors()
WHOLE = pack_header(METADATA, TENSORS)
ONE = {"t": ("f32", (2, 3))}


def parse(content: bytes) -> GgufHeader:
    return parse_gguf_header(
        lambda start, stop: content[start:stop], file_bytes=len(content), path="a.gguf"
    )


def read_or_refuse(content: bytes) -> object:
    """Return what a header holds, or the hint of its refusal."""
    try:
        return parse(content)
    except InputError as error:
        return error.hint


def test_a_header_says_what_was_written(tmp_path: Path) -> None:
    header = read_gguf_header(write_gguf(tmp_path / "a.gguf", METADATA, TENSORS))
    assert header.metadata["qwen3moe.expert_count"] == 8
    assert header.version == 3
    found = {t.name: (t.type.name, t.shape) for t in header.tensors}
    assert found == TENSORS
    for tensor in header.tensors:
        assert tensor.num_bytes == count_bytes(*TENSORS[tensor.name])
        assert tensor.offset % 32 == 0
    last = header.tensors[-1]
    assert last.offset + last.num_bytes == header.file_bytes


def test_long_lists_are_counted_and_short_ones_kept() -> None:
    words = [f"word{number}" for number in range(5000)]
    metadata = {"words": words, "scores": [1.5] * 5000, "few": ["a", "b"], "flag": True}
    header = parse(pack_header(metadata, {}))
    assert header.metadata == {
        "words": LongList(5000),
        "scores": LongList(5000),
        "few": ["a", "b"],
        "flag": True,
    }


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", METADATA, {"t": ("q8_0", (2**18, 2**18))})
    assert path.stat().st_size > 60 * 2**30
    read: list[int] = []

    def slice_of(start: int, stop: int) -> bytes:
        read.append(stop - start)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    header = parse_gguf_header(slice_of, file_bytes=path.stat().st_size, path="a.gguf")
    assert header.tensors[0].num_bytes == 2**36 // 32 * 34
    assert sum(read) <= 4 * 2**20


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "breaks off"),
        (b"GGML" + WHOLE[4:], "begins with"),
        (WHOLE[:200], "breaks off|too short"),
        (WHOLE[:-40], "breaks off|ends at"),
        (WHOLE, "ends at"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**40, 0), "too short"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63), "too short"),
        (pack_header({"": 1}, {}), "without a name"),
        (pack_header({"k": struct.pack("<I", 99)}, {}) + b"\0" * 99, "unknown type 99"),
        (pack_header({"k": struct.pack("<IIQ", 9, 9, 1)}, {}) + b"\0" * 99, "list of lists"),
        (pack_header({"k": struct.pack("<IIQ", 9, 8, 2**61)}, {}) + b"\0" * 99, "too short"),
        (pack_header({"k": struct.pack("<IQ", 8, 2**62)}, {}) + b"\0" * 99, "breaks off"),
        (pack_header({"general.alignment": 24}, ONE) + b"\0" * 99, "power of two"),
        (pack_header({"general.alignment": 0}, ONE) + b"\0" * 99, "power of two"),
        (pack_header({}, {"n" * 64: ("f32", (1,))}) + b"\0" * 99, "name of 64 bytes"),
        (pack_header({}, {"t": ("f32", (1,) * 5)}) + b"\0" * 99, "5 dimensions"),
        (pack_header({}, {"t": ("q8_0", (1, 33))}) + b"\0" * 99, "don't fill blocks"),
        (pack_header({}, {"t": ("f32", (0, 4, 2**62))}) + b"\0" * 99, "63 bits"),
    ],
)
def test_false_claims_are_refused(content: bytes, seen: str) -> None:
    with pytest.raises(InputError, match="not a complete GGUF file") as refused:
        parse(content)
    assert refused.value.hint
    assert re.search(seen, refused.value.facts[0])


@pytest.mark.parametrize("number", [4, 31, 38, 43, 139, 2**32 - 1])
def test_tensors_of_unknown_types_are_refused(number: int) -> None:
    entry = pack_text("t") + struct.pack("<IQIQ", 1, 32, number, 0)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + b"\0" * 99
    what = "removed" if number in REMOVED_TYPES else "unknown"
    with pytest.raises(InputError) as refused:
        parse(head)
    assert f"{what} type {number}" in refused.value.facts[0]


@pytest.mark.parametrize(
    ("offset", "seen"), [(0, "overlaps"), (64, "leaves a gap"), (2**63, "gap")]
)
def test_tensors_lie_one_after_the_other(offset: int, seen: str) -> None:
    entries = pack_tensor("a", "f32", (8,), 0) + pack_tensor("b", "f32", (8,), offset)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + entries
    with pytest.raises(InputError) as refused:
        parse(head + b"\0" * 200)
    assert seen in refused.value.facts[0]


def test_names_occur_once() -> None:
    twice = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + (pack_text("k") + pack_value(1)) * 2
    with pytest.raises(InputError, match="complete"):
        parse(twice)
    entries = pack_tensor("a", "f32", (8,), 0) + pack_tensor("a", "f32", (8,), 32)
    with pytest.raises(InputError) as refused:
        parse(b"GGUF" + struct.pack("<IQQ", 3, 2, 0) + entries + b"\0" * 200)
    assert "twice" in refused.value.facts[0]


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (struct.pack(">I", 3), "big-endian"),
        (struct.pack(">I", 2), "big-endian"),
        (struct.pack("<I", 1), "version 1;"),
        (struct.pack("<I", 4), "version 4;"),
        (struct.pack("<I", 0), "version 0;"),
    ],
)
def test_other_versions_are_refused_by_what_they_are(version: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse(WHOLE[:4] + version + WHOLE[8:])


def test_a_pointer_of_git_lfs_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(InputError, match="Git LFS pointer"):
        read_gguf_header(path)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    st.integers(0, len(WHOLE)),
)
def test_damaged_headers_are_read_or_refused(changes: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(WHOLE)
    for place, value in changes:
        content[place] = value
    for damaged in (bytes(content), bytes(content[:cut])):
        assert read_or_refuse(damaged + b"\0" * 64)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_anything_after_the_magic_is_read_or_refused(content: bytes) -> None:
    for head in (b"GGUF" + content, b"GGUF\x03\0\0\0" + content):
        assert read_or_refuse(head)


def test_types_of_the_writer_are_those_of_the_reader() -> None:
    for name, (number, block, num_bytes) in TYPES.items():
        assert TENSOR_TYPES[number] == (name, block, num_bytes)
