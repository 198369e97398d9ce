"""GGUF models in one file, in parts and in folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from moetool.checkpoint.gguf.files import open_gguf
from moetool.checkpoint.reference import ModelKind, resolve_model
from moetool.errors import InputError
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf

METADATA = moe_metadata()
TENSORS = moe_tensors()


def write_parts(folder: Path, *, count: int = 3, **changes: object) -> list[Path]:
    names = list(TENSORS)
    paths = []
    for number in range(count):
        metadata = {
            **(METADATA if number == 0 else {}),
            "split.no": number,
            "split.count": count,
            "split.tensors.count": len(names),
            **(changes if number == count - 1 else {}),
        }
        of_part = names[number * 12 : (number + 1) * 12 if number < count - 1 else None]
        path = folder / f"tiny-{number + 1:05}-of-{count:05}.gguf"
        paths.append(write_gguf(path, metadata, {name: TENSORS[name] for name in of_part}))
    return paths


def test_parts_are_one_model_whichever_is_named(tmp_path: Path) -> None:
    for path in (*write_parts(tmp_path), tmp_path):
        model = open_gguf(path)
        assert {tensor.name for tensor in model.tensors} == set(TENSORS)
        assert model.architecture == "qwen3moe"
        assert len(model.parts) == 3


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].unlink()
    with pytest.raises(InputError, match="lacks 1 of the 3 parts") as refused:
        open_gguf(paths[0])
    assert refused.value.facts == ("missing: tiny-00002-of-00003.gguf",)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"split.no": 1}, "it is not part 3 of 3"),
        ({"split.count": 4}, "it is not part 3 of 3"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(
    tmp_path: Path, change: dict[str, int], seen: str
) -> None:
    paths = write_parts(tmp_path, **change)
    with pytest.raises(InputError, match="do not belong together") as refused:
        open_gguf(paths[0])
    assert seen in refused.value.facts[0]


def test_parts_that_lack_tensors_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    write_gguf(paths[2], {"split.no": 2, "split.count": 3}, {})
    with pytest.raises(InputError, match="do not belong together") as refused:
        open_gguf(paths[0])
    assert "tensors of 27" in refused.value.facts[0]


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write_parts(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(InputError, match="its name doesn't say which"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({**METADATA, "general.type": "adapter"}, "a LoRA adapter"),
        ({"general.name": "nothing"}, "doesn't state a model's architecture"),
    ],
)
def test_files_that_hold_no_model_are_refused(
    tmp_path: Path, metadata: dict[str, object], words: str
) -> None:
    path = write_gguf(tmp_path / "a.gguf", metadata, {"t": ("f32", (1,))})
    with pytest.raises(InputError, match=words):
        open_gguf(path)


def test_a_vocabulary_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a vocabulary without tensors"):
        open_gguf(write_gguf(tmp_path / "a.gguf", METADATA, {}))


def test_a_folder_with_one_model_and_its_tower_names_the_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", METADATA, TENSORS)
    write_gguf(tmp_path / "mmproj-tiny.gguf", METADATA, {"v.patch_embd.weight": ("f32", (4, 4))})
    assert resolve_model(str(tmp_path)).kind is ModelKind.GGUF
    assert open_gguf(tmp_path).path.name == "tiny.gguf"
    write_gguf(tmp_path / "other.gguf", METADATA, TENSORS)
    with pytest.raises(InputError, match="holds 2 GGUF models"):
        open_gguf(tmp_path)
