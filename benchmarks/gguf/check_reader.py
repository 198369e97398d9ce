"""Compare the reader of GGUF headers with the gguf package, on files that either one writes.

python -m benchmarks.gguf.check_reader
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import gguf  # type: ignore[import-not-found]
import numpy as np

from moetool.checkpoint.gguf.header import read_gguf_header
from moetool.checkpoint.gguf.types import TENSOR_TYPES
from tests.anatomy.gguf.converted import lay_down, read_converted
from tests.checkpoint.gguf.writer import moe_metadata, moe_tensors, write_gguf

# The package gives this type of intermediate results 40 bytes, and ggml-common.h 36.
_KNOWN_DIFFERENCE = "q8_1"


def check_types() -> int:
    """Compare the sizes of blocks; return how many types were compared."""
    compared = 0
    for kind, (block, num_bytes) in gguf.GGML_QUANT_SIZES.items():
        found = TENSOR_TYPES[kind.value]
        assert found.name.lower() == kind.name.lower()
        if found.name != _KNOWN_DIFFERENCE:
            assert (found.block, found.num_bytes) == (block, num_bytes), kind
            compared += 1
    return compared


def check_file(path: Path) -> int:
    """Compare the tensors that both readers find in a file; return their number."""
    mine = {tensor.name: tensor for tensor in read_gguf_header(path).tensors}
    theirs = gguf.GGUFReader(path).tensors
    assert set(mine) == {tensor.name for tensor in theirs}
    for tensor in theirs:
        found = mine[tensor.name]
        assert found.shape == tuple(int(size) for size in reversed(tensor.shape)), tensor.name
        assert found.type == TENSOR_TYPES[tensor.tensor_type.value]
        assert found.num_bytes == tensor.n_bytes
        assert found.offset == tensor.data_offset
    return len(theirs)


def write_by_package(path: Path) -> Path:
    """Write a file with every kind of value, by the package."""
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint8("a", 1)
    writer.add_int64("b", -(2**60))
    writer.add_float64("c", 0.5)
    writer.add_bool("d", True)
    writer.add_array("e", [1, 2, 3])
    writer.add_array("f", [f"token {number}" for number in range(10_000)])
    writer.add_custom_alignment(64)
    writer.add_tensor("t", np.zeros((3, 5), dtype=np.float32))
    packed = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("u", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def main() -> None:
    """Compare types and files, and print how many."""
    num_types = check_types()
    num_tensors = num_files = 0
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_by_package(Path(folder, "package.gguf"))]
        paths += [
            write_gguf(Path(folder, f"{kind}.gguf"), moe_metadata(), moe_tensors(kind))
            for kind in ("f32", "f16", "bf16", "q8_0", "q4_K", "q6_K", "iq2_xxs", "iq4_xs", "mxfp4")
        ]
        paths += [
            lay_down(line, Path(folder, f"{family}.gguf"))
            for family, line in read_converted().items()
        ]
        for path in paths:
            num_tensors += check_file(path)
            num_files += 1
        kept = read_gguf_header(paths[0]).metadata
        assert (kept["b"], kept["c"], kept["d"], kept["e"]) == (-(2**60), 0.5, True, [1, 2, 3])
        assert kept["f"].count == 10_000
    sys.stdout.write(f"{num_types} types, {num_files} files and {num_tensors} tensors agree\n")


if __name__ == "__main__":
    main()
