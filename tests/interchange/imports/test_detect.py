"""Files are recognized by their content, and the command that is shown imports them."""

from __future__ import annotations

import json
import shlex
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file

from moetool import detect_format, import_trace
from moetool.cli.commands.traces.import_files import FORMAT_NAMES
from moetool.errors import InputError, UsageError
from moetool.interchange.imports.formats import FORMATS, find_format
from moetool.trace.schema import PROBABILITIES_SCHEMA
from tests.command import RunMoetool
from tests.interchange.imports import foreign
from tests.interchange.imports.known import make_known
from tests.interchange.imports.test_damaged import KNOWN, WRITERS
from tests.interchange.imports.test_tensorrt_llm import write_raw
from tests.interchange.imports.test_tools import write_esft
from tests.trace.examples import make_rows, write_trace


@pytest.mark.parametrize("name", WRITERS)
def test_a_format_is_found_whatever_the_file_is_called(name: str, tmp_path: Path) -> None:
    path = tmp_path / WRITERS[name][0]
    WRITERS[name][1](path, KNOWN)
    renamed = path.rename(tmp_path / "some thing.dat")
    found = detect_format(renamed)
    assert (found.format, found.kind) == (name, FORMATS[name].kind)
    assert found.gives
    assert found.lacks
    assert found.command is not None
    assert shlex.split(found.command)[:4] == ["moetool", "import", name, str(renamed)]


def test_folders_of_formats_that_write_one_are_found(tmp_path: Path) -> None:
    write_esft(tmp_path / "law" / "rank_0", make_known())
    (tmp_path / "trt").mkdir()
    write_raw(tmp_path / "trt", make_known())
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron" / "router_trace_rank3.jsonl").write_text("{}\n")
    (tmp_path / "empty").mkdir()
    found = {path.name: detect_format(path).format for path in tmp_path.iterdir()}
    assert found == {
        "law": "esft",
        "trt": "tensorrt-llm-raw",
        "megatron": "megatron",
        "empty": None,
    }


def test_files_that_are_not_imported_are_named_too(tmp_path: Path) -> None:
    (tmp_path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "cut.json").write_text('{\n"a": 1\n')
    (tmp_path / "semicolons.csv").write_text("layer;expert;prompt_id;position\n")
    probabilities = PROBABILITIES_SCHEMA.empty_table()
    pq.write_table(probabilities, tmp_path / "trace.probabilities.parquet")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.txt").write_text("hello\n")
    name = b"blk.0.ffn_up_exps.weight"
    (tmp_path / "old.dat").write_bytes(struct.pack("<ii", 3, len(name)) + name + b"\0" * 20)
    save_file({"weight": np.zeros(2)}, tmp_path / "model.safetensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    foreign.write_gguf(tmp_path / "model.gguf", {"general.architecture": "x"}, {})
    found = {path.name: detect_format(path) for path in tmp_path.iterdir()}
    assert {each.format for each in found.values()} == {None}
    titles = {name: each.title for name, each in found.items()}
    assert titles["empty"] == "an empty file"
    assert titles["text.txt"] == "a file of no known format"
    assert titles["meta_info.json"].endswith("name the folder that it is in")
    assert "--output-format gguf" in titles["old.dat"]
    assert titles["model.safetensors"].startswith("safetensors, but not")
    assert titles["model.pt"].startswith("a file of torch, but not")
    assert titles["model.gguf"] == "a GGUF file, but not an importance matrix"
    assert titles["list.json"] == "JSON without routed experts"
    assert titles["cut.json"].startswith("damaged JSON: Expecting ',' delimiter: line 3")
    assert titles["semicolons.csv"].startswith("a trace whose columns are separated by semicolons")
    assert titles["trace.probabilities.parquet"].startswith("a trace's file of router probabil")


def test_files_of_moetool_are_recognized(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "trace.csv", make_rows((1,)))
    found = detect_format(trace)
    assert (found.format, found.kind) == (None, "trace")
    assert found.command == f"moetool validate {trace}"
    (tmp_path / "parts").mkdir()
    write_trace(tmp_path / "parts" / "part-0.parquet", make_rows((1,)))
    assert detect_format(tmp_path / "parts").kind == "trace"
    path = foreign.write_imatrix(tmp_path / "m.gguf", {0: np.ones(4, dtype=np.float32)})
    loads = import_trace("imatrix", path, tmp_path / "loads.parquet").path
    assert detect_format(loads).kind == "load table"
    assert "metadata" not in detect_format(loads).title


def test_names_of_formats_have_other_spellings_and_tools_stand_for_all_of_theirs() -> None:
    assert find_format("SGLang_per_token") == ("sglang-per-token",)
    assert find_format("llama.cpp") == ("imatrix",)
    assert set(find_format("sglang")) == {name for name in FORMATS if name.startswith("sglang-")}
    assert find_format("auto") == tuple(FORMATS)
    shown = [name for word in FORMAT_NAMES.split(", ") for name in find_format(word)]
    assert sorted(shown) == sorted(FORMATS)
    with pytest.raises(UsageError, match="No format 'olmo'"):
        find_format("olmo")


def test_files_of_several_formats_are_refused(tmp_path: Path) -> None:
    known = make_known()
    first = foreign.write_lines(tmp_path / "a.jsonl", [foreign.vllm_response(known.prompts[0])])
    second = foreign.write_imatrix(tmp_path / "b.gguf", {0: np.ones(4, dtype=np.float32)})
    with pytest.raises(InputError, match=r"is of the format vllm, and .* of imatrix"):
        import_trace("auto", [first, second], tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"is llama\.cpp's importance matrix"):
        import_trace("sglang", second, tmp_path / "t.parquet")
    with pytest.raises(InputError) as wrong:
        import_trace("mbolt", second, tmp_path / "t.parquet")
    assert wrong.value.hint.startswith(f"Import '{second}' as imatrix: it looks like llama.cpp's")
    trace = write_trace(tmp_path / "trace.csv", make_rows((1,)))
    with pytest.raises(InputError, match=r"not a file of torch\.save") as wrong:
        import_trace("sglang-stat", trace, tmp_path / "t.parquet")
    assert wrong.value.hint == f"Leave out '{trace}', which is a trace of moetool already."
    with pytest.raises(UsageError, match="are Megatron-LM's"):
        import_trace("imatrix", second, tmp_path / "t.parquet", layer_offsets=[1])
    third = tmp_path / "c.parquet"
    third.write_bytes(second.read_bytes())
    with pytest.raises(UsageError, match="is an input of this command"):
        import_trace("imatrix", third, third, overwrite=True)


def test_the_command_writes_a_trace_and_says_what_is_in_it(
    run_moetool: RunMoetool, tmp_path: Path
) -> None:
    known = make_known()
    foreign.write_lines(
        tmp_path / "r.jsonl", [foreign.vllm_response(prompt) for prompt in known.prompts]
    )
    command = ("import", "vllm", "r.jsonl", "--layers", "1-3", "--num-experts", "8")
    done = run_moetool(*command, "-o", "t.parquet", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Imported a trace from vllm" in done.stderr
    assert "top-2 of 8 experts" in done.stderr
    again = run_moetool(*command, "-o", "t.parquet", cwd=tmp_path)
    assert (again.returncode, "'t.parquet' exists." in again.stderr) == (2, True)
    quiet = run_moetool(*command, "-o", "t.parquet", "--force", "-q", cwd=tmp_path)
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    shown = run_moetool(*command, "-o", "t.csv", "--format", "json", cwd=tmp_path)
    content = json.loads(shown.stdout)
    assert (content["schema"], content["path"]) == ("moetool.import/1", "t.csv")
    assert content["num_rows"] == 3 * 2 * sum(prompt.num_rows for prompt in known.prompts)
    row = run_moetool(*command, "-o", "u.csv", "--format", "csv", cwd=tmp_path).stdout.splitlines()
    assert row[0].startswith("path,format,kind,num_rows")
    for arguments, code in (
        (("import", "vllm"), 2),
        (("import", "vllm", "r.jsonl"), 2),
        (("import", "vllm", "r.jsonl", "-o", "-"), 2),
        (("import", "vllm", "missing", "-o", "x.parquet"), 3),
        (("import", "vllm", "r.jsonl", "-o", "x.txt"), 2),
        (("import", "--detect", "missing"), 3),
    ):
        failed = run_moetool(*arguments, cwd=tmp_path)
        assert failed.returncode == code
        assert failed.stderr.startswith("error: ")
        assert "Traceback" not in failed.stderr


def test_the_command_shows_what_files_are(run_moetool: RunMoetool, tmp_path: Path) -> None:
    foreign.write_imatrix(tmp_path / "m.gguf", {0: np.ones(4, dtype=np.float32)})
    (tmp_path / "x").write_text("hello")
    page = run_moetool("import", "--detect", "m.gguf", "x", "missing", cwd=tmp_path)
    assert page.returncode == 3
    assert page.stderr.startswith("error: 2 of 3 files can't be imported: 'x' and 'missing'.\nhint")
    assert page.stdout.splitlines() == [
        "m.gguf: llama.cpp's importance matrix (.gguf)",
        "format      imatrix",
        "becomes     a load table",
        "has         counts",
        "lacks       tokens, steps",
        "moetool import imatrix m.gguf -o loads.parquet",
        "",
        "x: a file of no known format",
        "",
        "missing: a file that can't be read: No such file or directory",
    ]
    alone = run_moetool("import", "--detect", "x", cwd=tmp_path)
    assert (alone.returncode, alone.stdout) == (3, "")
    assert alone.stderr.startswith("error: 'x' is a file of no known format.\nhint: ")
    shown = run_moetool("import", "--detect", "m.gguf", "--format", "json", cwd=tmp_path)
    (found,) = json.loads(shown.stdout)["files"]
    assert found["format"] == "imatrix"
    rows = run_moetool("import", "--detect", "m.gguf", "x", "-o", "r.csv", cwd=tmp_path)
    assert (rows.returncode, rows.stdout) == (3, "")
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 3
