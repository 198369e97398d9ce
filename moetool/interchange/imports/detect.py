"""Detection of a file's format by its content, whatever its name."""

from __future__ import annotations

import json
import re
import shlex
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moetool.choices import take_path
from moetool.errors import InputError
from moetool.interchange.imports.engines import (
    megatron,
    sglang_loads,
    sglang_responses,
    tensorrt_llm,
    vllm,
)
from moetool.interchange.imports.engines.responses import iter_responses
from moetool.interchange.imports.formats import FORMATS, Format
from moetool.interchange.imports.reading.arrays import NPY_START
from moetool.interchange.imports.reading.gguf import GGUF_START, read_gguf
from moetool.interchange.imports.reading.text import PICKLE_STARTS, open_input, quote
from moetool.interchange.imports.reading.torch_files import ZIP_START
from moetool.interchange.imports.tools import (
    bigmoeonedge,
    esft,
    imatrix,
    mbolt,
    olmoe,
    policylang,
)
from moetool.plain import Tabular, make_plain, show_fields
from moetool.printable import printable
from moetool.trace.loads.metadata import has_load_columns
from moetool.trace.schema import REQUIRED_COLUMNS

_HEAD_BYTES = 65_536
_ESFT_LINE = re.compile(rb"\d+(?:\t\d+)*\t\t[\d.]+(?:\t[\d.]+)*\s*(?:\n|$)")
_LEGACY_NAME = re.compile(rb"[\x20-\x7e]{4,200}")
_PARQUET_START = b"PAR1"
_TRACE, _LOADS = "moetool trace", "moetool load table"


@dataclass(frozen=True)
class Detection(Tabular):
    """A file's format.

    Attributes:
        path: The file or folder.
        format: As `moetool import` names it; None if it can't be imported.
        title: What the file is.
        kind: `trace` or `load table`; None if it is neither.
        gives: What a trace or load table from it has.
        lacks: What it doesn't have.
        command: The command line that imports it, or that reads it as it is; None without one.
    """

    path: str
    format: str | None
    title: str
    kind: str | None = None
    gives: str | None = None
    lacks: str | None = None
    command: str | None = None

    __repr__ = show_fields

    @classmethod
    def column_types(cls) -> Mapping[str, Any]:
        """Return the columns of the one row."""
        words = dict.fromkeys(("format", "kind", "gives", "lacks", "command"), str | None)
        return {"path": str, "title": str, **words}

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one row."""
        return [{name: getattr(self, name) for name in self.column_types()}]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        plain: dict[str, Any] = make_plain(self)
        return plain


def detect_format(path: str | Path) -> Detection:
    """Return what a file or folder is, by its content.

    Args:
        path: A file, or the folder of a format that writes one.

    Raises:
        InputError: It can't be read.
    """
    path = take_path(path, name="file")
    found = _detect_folder(path) if path.is_dir() else _detect_file(path)
    if found in FORMATS:
        return _describe(path, FORMATS[found])
    if found == _TRACE:
        command = f"moetool specialize {_shell(path)}"
        return Detection(str(path), None, "a trace of moetool", "trace", command=command)
    if found == _LOADS:
        title = "a load table of moetool"
        return Detection(
            str(path), None, title, "load table", command=f"moetool balance {_shell(path)}"
        )
    return Detection(str(path), None, found)


def _describe(path: Path, known: Format) -> Detection:
    output = "trace.parquet" if known.kind == "trace" else "loads.parquet"
    parts = ["moetool import", known.name, _shell(path), known.options, f"-o {output}"]
    return Detection(
        path=str(path),
        format=known.name,
        title=known.title,
        kind=known.kind,
        gives=known.gives,
        lacks=known.lacks,
        command=" ".join(part for part in parts if part),
    )


def _shell(path: Path) -> str:
    return shlex.quote(printable(path, max_length=500))


def _detect_folder(path: Path) -> str:
    """Return the name of the format of a folder, or what else it is."""
    if esft.list_files(path):
        return esft.FORMAT
    for is_raw, name in ((True, tensorrt_llm.RAW), (False, tensorrt_llm.COUNTS)):
        if tensorrt_llm.list_rank_files(path, is_raw=is_raw):
            return name
    if any(path.glob("router_trace_rank*.jsonl")):
        return megatron.FORMAT
    return "a folder without files of a known format: name one of its files"


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
    return _detect_csv(head)


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


def _detect_csv(head: bytes) -> str:
    names = head.partition(b"\n")[0].decode(errors="replace").strip().split(",")
    plain = [name.strip().strip('"') for name in names]
    return _name_table(plain) or "a file of no known format"


def _name_table(names: list[str]) -> str | None:
    if has_load_columns(names):
        return _LOADS
    if all(name in names for name in REQUIRED_COLUMNS):
        return _TRACE
    if all(name in names for name in policylang.REQUIRED):
        return policylang.FORMAT
    return None


def _detect_json(path: Path) -> str:
    try:
        _, first = next(iter_responses(path), ("", {}))
    except InputError:
        return f"a damaged JSON file: {_say_json_error(path)}"
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
    return "JSON without routed experts"


def _say_json_error(path: Path) -> str:
    try:
        with open_input(path) as file:
            json.loads(file.readline(_HEAD_BYTES))
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:
        return printable(error, max_length=80)
    return "a value of it is not an object"


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


def choose_format(names: tuple[str, ...], paths: tuple[Path, ...]) -> Format:
    """Return the one format that some files have, among those that a name stands for.

    Raises:
        InputError: The files are of other formats, or of several.
    """
    if len(names) == 1:
        return FORMATS[names[0]]
    found: dict[str, Path] = {}
    for path in paths:
        detection = detect_format(path)
        if detection.format not in names:
            raise InputError(
                f"{quote(path)} is {detection.title}.",
                hint=f"Name the format: {', '.join(names)}.",
            )
        found.setdefault(detection.format, path)
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise InputError(
            f"{quote(one)} is of the format {first}, and {quote(other)} of {second}.",
            hint="Import files of one format at a time.",
        )
    return FORMATS[next(iter(found))]
