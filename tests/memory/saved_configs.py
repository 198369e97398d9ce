"""Tiny families' configurations in files, and builders, loaders and runs of their models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from moetool.catalogue.gpus import find_gpu
from moetool.checkpoint.reference import resolve_model
from moetool.checkpoint.subject import AskedSource, find_subject
from moetool.memory.loaded.loaded_model import ModelLoader
from moetool.memory.loaded.skeletons import SkeletonBuilder
from moetool.memory.simulated.model_runs import ModelRuns
from tests.families.tiny.configs import build_config
from tests.families.tiny.families import find_family


def save_config(family: str, folder: Path, **fields: Any) -> str:
    """Save a tiny family's configuration with some fields as given, and return its path.

    As in a checkpoint, it names the model's class.
    """
    path = folder / "config.json"
    model_class = find_family(family).model_class
    named = {"architectures": [model_class]} if model_class else {}
    config = {**build_config(family).to_dict(), **named, **fields}
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def make_builder(model: str) -> SkeletonBuilder:
    """Return a builder of a model, by any kind of name."""
    subject = find_subject(resolve_model(model), source=AskedSource.AUTO, revision=None)
    return SkeletonBuilder(subject)


def make_loader(model: str, *, gpu: str = "h200") -> ModelLoader:
    """Return a loader of a model on a GPU, by any kind of name."""
    return ModelLoader(make_builder(model), find_gpu(gpu))


def make_runs(model: str, *, gpu: str = "h200") -> ModelRuns:
    """Return a model's runs on a GPU."""
    return ModelRuns(make_loader(model, gpu=gpu))
