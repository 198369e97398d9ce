"""`moetool quantize` on the command line: what it prints, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.quantizing.saving.shards import ShardWriter
from tests.cli.bad_input.refusals import Refusal, assert_refused
from tests.command import run_main
from tests.tiny_models import build_model


def test_the_command_writes_a_folder_that_it_does_not_replace_unasked(tmp_path: Path) -> None:
    target = tmp_path / "demo"
    first = run_main("quantize", "demo", "-o", target, "--quantization", "int8")
    assert (first.returncode, first.stdout) == (0, "")
    assert first.stderr.startswith(f"wrote {target}: 3.6 MiB of tensors in 1 file (int8), made of")
    again = run_main("quantize", "demo", "-o", target)
    assert_refused(again, Refusal(2, error="exists", hint="--force"), target=None)
    forced = run_main("quantize", "demo", "-o", target, "--force", "-q")
    assert (forced.returncode, forced.stdout, forced.stderr) == (0, "", "")
    seen = run_main("inspect", target)
    assert "quantized   moetool, nf4; 7.05 bits per weight, scales included\n" in seen.stdout


@pytest.mark.parametrize(
    ("family", "words", "refusal"),
    [
        ("olmoe", (), Refusal(2, error="folder to write is missing", hint="-o")),
        ("olmoe", ("-o", "{}/a/b"), Refusal(2, error="is not a folder", hint="Create it")),
        ("olmoe", ("-o", "{}/a", "--quantization", "none"), Refusal(2, error="no", hint="nf4")),
        (
            "olmoe",
            ("-o", "{}/a", "--quantization", "int8", "--double-quant"),
            Refusal(2, error="Double quantization has no effect", hint="nf4"),
        ),
        ("llama", ("-o", "{}/a"), Refusal(4, error="dense model", hint="--no-quantize-experts")),
    ],
)
def test_what_cannot_be_done_is_refused(
    family: str, words: tuple[str, ...], refusal: Refusal, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    build_model(family).save_pretrained(source)
    run = run_main("quantize", source, *(word.format(tmp_path) for word in words))
    assert_refused(run, refusal, target=None)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "write", interrupt)
    run = run_main("quantize", "demo", "-o", tmp_path / "demo")
    assert_refused(run, Refusal(130, error="Interrupted", hint="wrote no file"), target=None)
    assert not any(tmp_path.iterdir())
