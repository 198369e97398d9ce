"""Cut and changed files of every format end in one sentence or a valid trace, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moetool import detect_format, import_trace, read_trace
from moetool.errors import InputError, MoetoolError
from moetool.trace.loads.table import open_loads
from tests.interchange.imports import foreign
from tests.interchange.imports.known import Known, make_known
from tests.interchange.imports.test_bigmoeonedge import write_bigmoe
from tests.interchange.imports.test_tools import make_policylang, write_mbolt

KNOWN = make_known(num_prompts=2)


def write_per_token(path: Path, known: Known) -> None:
    rows = [(prompt, 0, prompt.num_rows) for prompt in known.prompts]
    record = foreign.sglang_record(known, rows, forward_pass=1, mode=1)
    foreign.save_dump(path, [record], np.tile(np.arange(8), (4, 1)))


def write_stat(path: Path, known: Known) -> None:
    counts = torch.ones(2, known.num_layers, known.num_experts, dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": counts}, path)


def write_counts(path: Path, known: Known) -> None:
    save_file({"1_1": np.arange(known.num_experts)}, path)


def write_megatron(path: Path, known: Known) -> None:
    lines = [
        line
        for step, prompt in enumerate(known.prompts)
        for line in foreign.megatron_lines(known, prompt, step=step, layers=known.routed)
    ]
    foreign.write_lines(path, lines)


def write_olmoe(path: Path, known: Known) -> None:
    lines = [
        {
            "input_ids": prompt.ids[:-1].tolist(),
            "exp_ids": prompt.experts[:, 1:].transpose(0, 2, 1).tolist(),
        }
        for prompt in known.prompts
    ]
    foreign.write_lines(path, lines)


def write_esft_file(path: Path, known: Known) -> None:
    lines = []
    for prompt in known.prompts:
        ids = "\t".join(map(str, prompt.experts[:, 1].ravel()))
        lines.append(f"{ids}\t\t{ids.replace(ids[0], '0.5')}\n")
    path.write_text("".join(lines))


WRITERS: dict[str, tuple[str, Callable[[Path, Known], object]]] = {
    "sglang-per-token": ("a.pt", write_per_token),
    "sglang-stat": ("a.pt", write_stat),
    "sglang-routed-experts": (
        "a.jsonl",
        lambda path, known: foreign.write_lines(
            path, [foreign.sglang_response(prompt) for prompt in known.prompts]
        ),
    ),
    "vllm": (
        "a.jsonl",
        lambda path, known: foreign.write_lines(
            path, [foreign.vllm_response(prompt) for prompt in known.prompts]
        ),
    ),
    "megatron": ("a.jsonl", write_megatron),
    "tensorrt-llm-counts": ("a.safetensors", write_counts),
    "bigmoeonedge": ("a.csv", write_bigmoe),
    "mbolt": ("a.bin", write_mbolt),
    "olmoe": ("a.jsonl", write_olmoe),
    "esft": ("expert_weights_1.txt", write_esft_file),
    "moe-policylang": (
        "a.parquet",
        lambda path, known: pq.write_table(make_policylang(known), path),
    ),
    "imatrix": (
        "a.gguf",
        lambda path, _: foreign.write_imatrix(path, {1: np.arange(8, dtype=np.float32)}),
    ),
}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a whole file of each format."""
    folder = tmp_path_factory.mktemp("wholes")
    found = {}
    for name, (file, write) in WRITERS.items():
        write(folder / file, KNOWN)
        found[name] = (folder / file).read_bytes()
    return found


def try_import(name: str, content: bytes, folder: Path) -> str | None:
    """Import some bytes and check the outcome: a valid file, or an error and no file."""
    path, target = folder / WRITERS[name][0], folder / "out.parquet"
    path.write_bytes(content)
    options: dict[str, Any] = {"overwrite": True}
    if name in ("sglang-routed-experts", "esft"):
        options["top_k"] = 2
    target.unlink(missing_ok=True)
    with suppress(InputError):
        detect_format(path)
    error: MoetoolError | None = None
    try:
        result = import_trace(name, path, target, **options)
    except MoetoolError as raised:
        error = raised
    if error is not None:
        assert "\n" not in error.message
        assert len(error.message) < 1000
        assert sorted(each.name for each in folder.iterdir()) == [path.name]
        return error.message
    if result.kind == "trace":
        assert len(read_trace(target)) == result.num_rows
    else:
        assert len(open_loads(target).to_frame()) == result.num_rows
    assert sorted(each.name for each in folder.iterdir()) == sorted([path.name, target.name])
    return None


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=12)
@given(data=st.data())
def test_a_cut_or_changed_file_never_raises_anything_else(
    name: str,
    data: st.DataObject,
    wholes: dict[str, bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    whole = wholes[name]
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole))))
    try_import(name, bytes(content[:end]), tmp_path_factory.mktemp("cut"))


@pytest.mark.parametrize("name", WRITERS)
def test_whole_files_are_imported_and_files_of_other_formats_refused(
    name: str, wholes: dict[str, bytes], tmp_path: Path
) -> None:
    assert try_import(name, wholes[name], tmp_path) is None
    (tmp_path / "out.parquet").unlink()
    for other, content in wholes.items():
        if other != name:
            assert try_import(name, content, tmp_path) is not None
    for content in (b"", b"\0", b"\xff" * 100, b"{}\n", b"[" * 100_000, b"PK\x03\x04", b"GGUF"):
        assert try_import(name, content, tmp_path) is not None


def test_a_pickle_is_refused_without_being_run(tmp_path: Path) -> None:
    path = tmp_path / "counts.pkl"
    victim = tmp_path / "victim"
    # Protocol 0 and 2 of a pickle that would call os.system.
    call = f"cos\nsystem\n(S'touch {victim}'\ntR.".encode()
    for start in (b"", b"\x80\x02"):
        path.write_bytes(start + call)
        for name in ("olmoe", "sglang-stat", "auto"):
            is_named = bool(start) or name == "sglang-stat"
            with pytest.raises(InputError, match="pickle" if is_named else "counts.pkl"):
                import_trace(name, path, tmp_path / "t.parquet")
        assert not victim.exists()
    assert "pickle" in detect_format(path).title
    torch.save({"logical_count": Path("x")}, tmp_path / "unsafe.pt")
    with pytest.raises(InputError, match="is a pickle that may run code"):
        import_trace("sglang-stat", tmp_path / "unsafe.pt", tmp_path / "t.parquet")


def test_headers_that_claim_more_than_there_is_allocate_nothing(tmp_path: Path) -> None:
    npy = b"\x93NUMPY\x01\x00v\x00" + (
        "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 99, 8)}".ljust(117) + "\n"
    ).encode("latin1")
    (tmp_path / "a.npy").write_bytes(npy)
    with pytest.raises(InputError, match="breaks off"):
        import_trace("vllm", tmp_path / "a.npy", tmp_path / "t.parquet")
    gguf = b"GGUF\x03\0\0\0" + b"\xff" * 7 + b"\x7f" + b"\0" * 8
    (tmp_path / "a.gguf").write_bytes(gguf)
    with pytest.raises(InputError, match="not a complete GGUF file"):
        import_trace("imatrix", tmp_path / "a.gguf", tmp_path / "t.parquet")
