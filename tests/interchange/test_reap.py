"""REAP's observer file: its saliency is read back, and every other file is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from moetool.errors import InputError
from moetool.interchange.reap import read_saliency


def test_saliency_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "observer.pt"
    torch.save({3: {"reap": torch.tensor([0.5, 0.0]), "expert_frequency": torch.ones(2)}}, path)
    assert read_saliency(path) == {3: [0.5, 0.0]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "not an observer file"),
        ([1], "not an observer file"),
        ({"a": {"reap": torch.ones(2)}}, "not an observer file"),
        ({1: {"expert_frequency": torch.ones(2)}}, "not an observer file"),
        ({1: {"reap": torch.ones(2, 2)}}, "not an observer file"),
        ({1: {"reap": [1.0]}}, "not an observer file"),
        ({1: {"reap": torch.tensor([float("nan")])}}, "negative or not finite"),
        ({1: {"reap": torch.tensor([-1.0])}}, "negative or not finite"),
    ],
)
def test_other_content_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "observer.pt"
    torch.save(content, path)
    with pytest.raises(InputError, match=words) as caught:
        read_saliency(path)
    assert "observer.pt" in caught.value.message


def test_pickles_missing_files_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "observer.pt"
    with pytest.raises(InputError):
        read_saliency(path)
    path.write_bytes(pickle.dumps({1: {"reap": [1.0]}}))
    with pytest.raises(InputError, match="run code"):
        read_saliency(path)
    torch.save({1: {"reap": torch.ones(2)}}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError):
        read_saliency(path)
