"""Import what other tools record of routing: the library's function."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from os import PathLike

from moetool.choices import take_count, take_flag, take_numbers, take_path, take_text
from moetool.errors import InputError, UsageError
from moetool.interchange.imports.detect import choose_format, find_other_format
from moetool.interchange.imports.formats import find_format
from moetool.interchange.imports.model_shapes import read_model_shapes
from moetool.interchange.imports.reading.text import quote
from moetool.interchange.imports.runs import ImportFiles, LoadImport
from moetool.interchange.imports.shapes import make_shapes
from moetool.interchange.imports.write import ImportResult, write_load_table, write_trace
from moetool.trace.metadata_fields import LARGEST_ID, MOST_IDS
from moetool.trace.writing.targets import check_target

_MOST_LAYERS = 100_000


def import_trace(
    format: str,
    files: str | PathLike[str] | Sequence[str | PathLike[str]],
    output: str | PathLike[str],
    *,
    model: str | None = None,
    layers: Collection[int] | None = None,
    num_layers: int | None = None,
    num_experts: int | None = None,
    top_k: int | None = None,
    layer_offsets: Sequence[int] = (),
    micro_batch_size: int | None = None,
    overwrite: bool = False,
) -> ImportResult:
    """Import what another tool recorded of routing, and return what was written.

    Formats with tokens become a trace, formats that only count experts a load table. What a format
    lacks is left out: a trace without weights has no column for them.

    Args:
        format: Name of a format; or of a tool with several, or `auto`, to look at the files.
        files: Files or folders of one format, all of one model.
        output: The .parquet or .csv file to write.
        model: The model that was recorded, for formats that don't state its layers: a folder, a
            config.json, a Hub id or a catalogue name.
        layers: Numbers of the routed layers, if not from a model.
        num_layers: Hidden layers, dense ones included, if not from a model.
        num_experts: Routed experts per layer, if neither the format nor a model states them.
        top_k: Experts per decision, if neither the format nor a model states them.
        layer_offsets: For Megatron-LM, by file: the first layer of its pipeline stage.
        micro_batch_size: For Megatron-LM: sequences in a micro-batch.
        overwrite: Replace an existing file.

    Raises:
        InputError: A file can't be read, or is not of the format, or contradicts the arguments.
        UsageError: The output can't be written, or something that the format needs is missing.
        DenseModelError: The model has no routed layers.
        UntraceableError: This transformers has no class for the model.
    """
    names = find_format(take_text(format, name="format"))
    given = [files] if isinstance(files, str | PathLike) else list(files)
    paths = tuple(take_path(file, name="file") for file in given)
    if not paths:
        raise UsageError("There are no files to import.", hint="Name at least one file.")
    places = [os.path.realpath(path) for path in paths]
    repeated = next(
        (path for path, own in zip(paths, places, strict=True) if places.count(own) > 1), None
    )
    if repeated is not None:
        raise UsageError(f"{quote(repeated)} was given twice.", hint="Name each file once.")
    target = take_path(output, name="output")
    overwrite = take_flag(overwrite, name="overwrite")
    numbers = take_numbers(layers, name="layer", largest=LARGEST_ID)
    sizes = {
        name: take_count(value, name=name, smallest=1, largest=most, is_optional=True)
        for name, value, most in (
            ("num_layers", num_layers, _MOST_LAYERS),
            ("num_experts", num_experts, MOST_IDS),
            ("top_k", top_k, MOST_IDS),
            ("micro_batch_size", micro_batch_size, 2**31),
        )
    }
    offsets = tuple(
        take_count(each, name="layer offset", smallest=0, largest=LARGEST_ID)
        for each in layer_offsets
    )
    check_target(target, replace_existing=overwrite, inputs=paths)
    chosen = choose_format(names, paths)
    if chosen.name != "megatron" and (offsets or sizes["micro_batch_size"]):
        raise UsageError(
            "Layer offsets and micro-batches are Megatron-LM's.", hint="Leave the option out."
        )
    shapes = make_shapes(
        layers=numbers,
        num_layers=sizes["num_layers"],
        num_experts=sizes["num_experts"],
        top_k=sizes["top_k"],
        of_model=None if model is None else read_model_shapes(take_text(model, name="model")),
    )
    request = ImportFiles(paths, offsets, sizes["micro_batch_size"])
    try:
        opened = chosen.open(request, shapes)
        if isinstance(opened, LoadImport):
            return write_load_table(opened, shapes, target, overwrite=overwrite)
        return write_trace(opened, shapes, target, overwrite=overwrite)
    except (InputError, UsageError) as error:
        hint = find_other_format(paths, chosen)
        if hint is None:
            raise
        raise type(error)(error.message, hint=hint, facts=error.facts) from error
