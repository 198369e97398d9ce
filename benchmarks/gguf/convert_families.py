"""Convert a tiny model of each family with llama.cpp's own converter, and keep the files' headers.

Needs a folder of llama.cpp (source, with `convert_hf_to_gguf.py`, `conversion` and `gguf-py`); that
of llama-cpp-python's source distribution does. A line for each family that is converted goes to
stdout (benchmarks/gguf/measured/converted_headers.jsonl), the reason why another one is not to stderr:

    python -m benchmarks.gguf.convert_families vendor/llama.cpp > converted_headers.jsonl
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from moetool.checkpoint.gguf.header import read_gguf_header
from tests.families.tiny.models import available, build_family

# Wider than the tiny models of other tests, so that rows fill blocks of 32 numbers.
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "moe_intermediate_size": 64,
    "shared_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "num_attention_heads": 4,
    "head_dim": 32,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
}
# The converter has no names for the dense layers that other tests give these families, or it needs
# fields that their configurations of today don't have.
OWN: dict[str, dict[str, Any]] = {
    "qwen2_moe": {"mlp_only_layers": []},
    "qwen3_moe": {"mlp_only_layers": []},
    "mellum": {"mlp_layer_types": ["sparse"] * 4},
    "minimax_m2": {"rotary_dim": 32},
    "granitemoehybrid": {"hidden_size": 64},
    "dbrx": {"hidden_size": 64},
}
_TYPES = ("f32", "f16", "bf16", "q8_0")


def import_converter(folder: Path) -> tuple[Any, Any]:
    """Return the converter's package in a folder of llama.cpp, and the one that it writes with."""
    # It needs the version of the package that it comes with. Folders next to it have common names.
    sys.path.insert(0, str(folder / "gguf-py"))
    sys.path.append(str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
        del sys.modules[name]
    import conversion  # type: ignore[import-not-found]
    import gguf  # type: ignore[import-not-found]

    return conversion, gguf


def convert(
    conversion: Any,
    gguf: Any,
    folder: Path,
    output: Path,
    tensor_type: str,
    *,
    add_vocabulary: Callable[[Any, int], None] | None = None,
) -> None:
    """Convert a checkpoint, by the class that the converter has for it.

    Args:
        conversion: The converter's package.
        gguf: The package that it writes with.
        folder: The checkpoint.
        output: The file to write.
        tensor_type: The type of matrices.
        add_vocabulary: Gives the file a tokenizer of a number of tokens; None for none.
    """
    hparams = conversion.ModelBase.load_hparams(folder, False)
    architecture = conversion.get_model_architecture(hparams, conversion.ModelType.TEXT)
    chosen = conversion.get_model_class(architecture, mmproj=False)

    def set_vocab(self: Any) -> None:
        vocab_size = int(self.hparams["vocab_size"])
        if add_vocabulary is not None:
            add_vocabulary(self.gguf_writer, vocab_size)
            return
        self.gguf_writer.add_tokenizer_model("none")
        self.gguf_writer.add_vocab_size(vocab_size)

    changed = {"set_vocab": set_vocab, "model_arch": chosen.model_arch}
    without_vocabulary = type(chosen.__name__, (chosen,), changed)
    kinds = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "bf16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    with torch.inference_mode():
        without_vocabulary(folder, kinds[tensor_type], output, eager=True).write()


def convert_family(source: tuple[Any, Any], family: str, tensor_type: str) -> dict[str, Any]:
    """Return the line of one family: its configuration, and the header of its file."""
    model = build_family(family, **WIDE | OWN.get(family, {}))
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name, "model"), Path(name, "model.gguf")
        model.save_pretrained(folder)
        convert(*source, folder, output, tensor_type)
        header = read_gguf_header(output)
        with output.open("rb") as file:
            content = file.read(header.header_bytes)
        config = json.loads((folder / "config.json").read_text())
    return {
        "family": family,
        "tensor_type": tensor_type,
        "transformers": transformers.__version__,
        "config": config,
        "file_bytes": header.file_bytes,
        "header": base64.b64encode(zlib.compress(content, 9)).decode(),
    }


def main() -> None:
    """Print a line for each family, the types of matrices taken in turn."""
    source = import_converter(Path(sys.argv[1]))
    number = 0
    for family in sys.argv[2:] or available():
        try:
            line = convert_family(source, family, _TYPES[number % len(_TYPES)])
        except (Exception, SystemExit) as error:  # noqa: BLE001  the converter raises anything
            sys.stderr.write(f"{family}: {type(error).__name__}: {str(error)[:200]}\n")
            continue
        number += 1
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
