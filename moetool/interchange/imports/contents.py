"""Contents of foreign files, recognized by how they begin and what they hold."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.interchange.imports.engines import (
    megatron,
    sglang_loads,
    sglang_responses,
    tensorrt_llm,
    vllm,
)
from moetool.interchange.imports.reading.arrays import NPY_START
from moetool.interchange.imports.reading.gguf import GGUF_START, read_gguf
from moetool.interchange.imports.reading.text import (
    PICKLE_STARTS,
    iter_lines,
    open_input,
    read_whole,
)
from moetool.interchange.imports.reading.torch_files import ZIP_START
from moetool.interchange.imports.tools import (
    bigmoeonedge,
    esft,
    imatrix,
    mbolt,
    olmoe,
    policylang,
)
from moetool.printable import printable
from moetool.trace.faults.headers import find_delimiter
from moetool.trace.loads.metadata import has_load_columns
from moetool.trace.schema import PROBABILITIES_SCHEMA, REQUIRED_COLUMNS

TRACE, LOADS = "moetool trace", "moetool load table"

_HEAD_BYTES = 65_536
_ESFT_LINE = re.compile(rb"\d+(?:\t\d+)*\t\t[\d.]+(?:\t[\d.]+)*\s*(?:\n|$)")
_LEGACY_NAME = re.compile(rb"[\x20-\x7e]{4,200}")
_PARQUET_START = b"PAR1"
_OTHER_JSON = "JSON without routed experts"


def find_content(path: Path) -> str:
    """Return the name of the format of a file or folder, `TRACE`, `LOADS`, or what else it is.

    Raises:
        InputError: It can't be read.
    """
    return _detect_folder(path) if path.is_dir() else _detect_file(path)


def _detect_folder(path: Path) -> str:
    """Return the name of the format of a folder, or what else it is."""
    if esft.list_files(path):
        return esft.FORMAT
    for is_raw, name in ((True, tensorrt_llm.RAW), (False, tensorrt_llm.COUNTS)):
        if tensorrt_llm.list_rank_files(path, is_raw=is_raw):
            return name
    if any(path.glob("router_trace_rank*.jsonl")):
        return megatron.FORMAT
    parts = sorted(path.glob("*.parquet"))
    if parts and _detect_file(parts[0]) == TRACE:
        return TRACE
    return "a folder without files of a known format"


def _detect_file(path: Path) -> str:
    """Return the name of the format of a file, or what else it is."""
    with open_input(path) as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "an empty file"
    for start, detect in _STARTS.items():
        if head.startswith(start):
            return detect(path)
    if head.startswith(PICKLE_STARTS):
        return "a pickle, which may run code when it is loaded, so it isn't read"
    if head.lstrip()[:1] in (b"{", b"["):
        return _detect_json(path)
    if _ESFT_LINE.match(head) or (b"\t" in head and set(head) <= set(b"0123456789\t.\n\r")):
        return esft.FORMAT
    if _is_safetensors(head):
        return tensorrt_llm.find_kind(path) or "safetensors, but not TensorRT-LLM's statistic"
    if _is_legacy_imatrix(head):
        return (
            "an importance matrix in llama.cpp's old format, which has no counts of experts: run "
            "llama-imatrix again with --output-format gguf"
        )
    return _detect_csv(path, head)


def _detect_gguf(path: Path) -> str:
    gguf = read_gguf(path)
    if gguf.metadata.get("general.type") == imatrix.KIND:
        return imatrix.FORMAT
    return "a GGUF file, but not an importance matrix"


def _detect_torch(path: Path) -> str:
    return sglang_loads.name_dump(path) or "a file of torch, but not a dump of SGLang's recorder"


def _detect_parquet(path: Path) -> str:
    try:
        with open_input(path) as file, pq.ParquetFile(file) as parquet:
            names = list(parquet.schema_arrow.names)
    except (pa.ArrowException, ValueError, OSError):
        return "a damaged Parquet file"
    return _name_table(names) or "a Parquet file without columns of a known format"


def _detect_csv(path: Path, head: bytes) -> str:
    names = head.partition(b"\n")[0].decode("utf-8-sig", errors="replace").strip().split(",")
    plain = [name.strip().strip('"') for name in names]
    known = _name_table(plain)
    if known is None:
        delimiter = find_delimiter(path, REQUIRED_COLUMNS)
        if delimiter is not None:
            return f"a trace whose columns are separated by {delimiter}: write it with commas"
    return known or "a file of no known format"


def _name_table(names: list[str]) -> str | None:
    if has_load_columns(names):
        return LOADS
    if all(name in names for name in REQUIRED_COLUMNS):
        return TRACE
    if all(name in names for name in policylang.REQUIRED):
        return policylang.FORMAT
    if all(name in names for name in PROBABILITIES_SCHEMA.names):
        return "a trace's file of router probabilities: name the trace that it belongs to"
    return None


def _detect_json(path: Path) -> str:
    try:
        value = _load_first(path)
    except RecursionError:
        return "JSON that is nested too deeply"
    except ValueError as error:
        return f"damaged JSON: {printable(error, max_length=80)}"
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(first, dict):
        return _OTHER_JSON
    if "exp_ids" in first:
        return olmoe.FORMAT
    if megatron.IDS in first and "block" in first:
        return megatron.FORMAT
    if sglang_responses.has_routed_experts(first):
        return sglang_responses.FORMAT
    if vllm.has_routed_experts(first):
        return vllm.FORMAT
    if "num_experts_per_token" in first and "num_experts" in first:
        return f"{tensorrt_llm.META} of TensorRT-LLM: name the folder that it is in"
    if str(first.get("schema")).startswith("moetool."):
        return "JSON that moetool wrote: name the trace that it belongs to"
    return _OTHER_JSON


def _load_first(path: Path) -> Any:
    """Return the value of a file's first line if that is JSON, else of the whole file.

    Raises:
        InputError: The file can't be read.
        ValueError: Neither is JSON.
        RecursionError: A value is nested too deeply.
    """
    line = next(iter_lines(path)).text
    try:
        return json.loads(line)
    except ValueError:
        return json.loads(read_whole(path))


def _is_safetensors(head: bytes) -> bool:
    if len(head) < 10:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return length < 2**31 and head[8:9] == b"{"


def _is_legacy_imatrix(head: bytes) -> bool:
    """Return whether a file begins like `int32 number, int32 length, name`, as `.dat` files do."""
    if len(head) < 16:
        return False
    number, length = struct.unpack("<ii", head[:8])
    name = head[8 : 8 + max(0, length)]
    return 0 < number < 10**6 and _LEGACY_NAME.fullmatch(name) is not None and b"weight" in name


_STARTS: Mapping[bytes, Callable[[Path], str]] = {
    GGUF_START: _detect_gguf,
    mbolt.START: lambda _: mbolt.FORMAT,
    _PARQUET_START: _detect_parquet,
    NPY_START: lambda _: vllm.FORMAT,
    ZIP_START: _detect_torch,
    bigmoeonedge.START: lambda _: bigmoeonedge.FORMAT,
}
