"""Measure checkpoints of published formats on a GPU: the weights as transformers loads them, and the peaks.

    python -m benchmarks.memory.formats [--kernels FOLDER] [CASE ...]

Published geometries, cut to a few layers and experts, with random packed weights. Each checkpoint is
loaded with `from_pretrained`, with and without the kernels that its format needs, and then generates.
`FOLDER` holds sources of `kernels-community` (`gpt_oss_triton_kernels`, `finegrained_fp8`) for
machines that can't fetch them from the Hub; without it, only loading without kernels is measured.
The kernels for fp8 try two of the twelve tilings that they would try, since compiling all takes
minutes: what a tiling allocates is its output, the same for each.

Each line that is printed is a JSON object: the case, the bytes that are allocated once it is loaded,
and the peaks of the prompt and of the whole generation, or the error.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from moetool.catalogue.published import read_published_config

# Batch size, prompt tokens, new tokens.
RUNS = ((1, 512, 4), (1, 2048, 4), (8, 512, 4), (8, 2048, 4))
_BLOCK = 128
_MX_GROUP = 32
# For each case: a name in the catalogue, and changes to its configuration.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss-20b": ("gpt-oss-20b", {"num_hidden_layers": 2}),
    "gpt-oss-120b": ("gpt-oss-120b", {"num_hidden_layers": 2}),
    "gpt-oss-unaligned": (
        "gpt-oss-20b",
        # Not a multiple of the 64 inputs that the layout for Hopper groups.
        {"num_hidden_layers": 2, "hidden_size": 2848, "intermediate_size": 2848},
    ),
    "qwen3-30b-a3b-fp8": ("qwen3-30b-a3b-fp8", {"num_hidden_layers": 2}),
    "deepseek-v3": ("deepseek-v3", {"num_hidden_layers": 4, "n_routed_experts": 64, "n_group": 8}),
}
_LISTS = ("layer_types", "mlp_layer_types")


def main() -> None:
    """Measure each case, those with kernels first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    show({"torch": torch.__version__, "transformers": transformers.__version__} | _describe_gpu())
    for has_kernels in (True, False) if arguments.kernels else (False,):
        for name in arguments.cases or CASES:
            start = time.perf_counter()
            found: dict[str, Any] = {"case": name, "kernels": has_kernels}
            try:
                folder = write_checkpoint(name, arguments.folder / f"formats-{name}")
                with offer_kernels(arguments.kernels if has_kernels else None):
                    measure(folder, found)
            except Exception as error:  # noqa: BLE001 - the next case may work
                found["error"] = f"{type(error).__name__}: {error}"[:400]
            finally:
                _release()
            show(found | {"seconds": round(time.perf_counter() - start, 1)})


def show(found: Mapping[str, Any]) -> None:
    """Print one line of JSON at once."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def read_cut_config(name: str) -> dict[str, Any]:
    """Return the configuration of a case: a published one, cut to a few layers."""
    model, changes = CASES[name]
    return cut_layers(dict(read_published_config(model)) | changes, changes["num_hidden_layers"])


def cut_layers(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """Return a configuration with the first layers alone."""
    lists = {field: config[field][:num_layers] for field in _LISTS if field in config}
    return {**config, **lists, "num_hidden_layers": num_layers}


def write_checkpoint(name: str, folder: Path) -> Path:
    """Write a case's checkpoint with random weights, packed as its format packs them."""
    if (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    config = read_cut_config(name)
    (folder / "config.json").write_text(json.dumps(config))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    model_config = transformers.AutoConfig.for_model(**plain)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(model_config, dtype=torch.bfloat16)
    pack = _pack_mxfp4 if "gpt-oss" in name else _pack_fp8
    skipped = config.get("quantization_config", {}).get("modules_to_not_convert") or []
    save_file(pack(model, skipped), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def measure(folder: Path, found: dict[str, Any]) -> None:
    """Load a checkpoint on the first GPU, and add what it takes to what was found."""
    _release()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map={"": 0}
    )
    model.eval()
    found["loading_peak_bytes"] = torch.cuda.max_memory_allocated() - before
    _release()
    found["weights_bytes"] = torch.cuda.memory_allocated() - before
    found["modules"] = sorted({type(m).__name__ for m in model.modules() if _is_packed(m)})
    found["dtypes"] = sorted({str(p.dtype) for p in model.parameters()})
    found["runs"] = []
    for sizes in RUNS:
        batch_size, num_prompt_tokens, num_new_tokens = sizes
        ids = torch.randint(1000, (batch_size, num_prompt_tokens), device="cuda")
        peaks: dict[str, Any] = {"run": sizes}
        for label, num_new in (("prompt", 1), ("all", num_new_tokens)):
            # Twice: compiling and tuning a kernel takes memory in its first run.
            for _ in range(2):
                _release()
                torch.cuda.reset_peak_memory_stats()
                with torch.inference_mode():
                    model.generate(
                        ids, max_new_tokens=num_new, do_sample=False, disable_compile=True
                    )
            peaks[f"{label}_peak_bytes"] = torch.cuda.max_memory_allocated() - before
        with torch.inference_mode():
            cache = model(ids, use_cache=True)
            torch.cuda.synchronize()
            _release()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            keyword = {"past_key_values": cache.past_key_values, "use_cache": True}
            model(ids[:, :1], **keyword)
            peaks["step_above_held_bytes"] = torch.cuda.max_memory_allocated() - held
            del cache, keyword
        found["runs"].append(peaks)
        show({"case": folder.name} | peaks)


def _is_packed(module: nn.Module) -> bool:
    name = type(module).__name__
    return "FP8" in name or "Mxfp4" in name or "Experts" in name


def _pack_mxfp4(model: nn.Module, skipped: list[str]) -> dict[str, torch.Tensor]:
    del skipped
    tensors = {}
    for path, parameter in model.named_parameters():
        if path.endswith(("experts.gate_up_proj", "experts.down_proj")):
            num_experts, inputs, outputs = parameter.shape
            groups = (num_experts, outputs, inputs // _MX_GROUP)
            tensors[f"{path}_blocks"] = torch.randint(
                256, (*groups, _MX_GROUP // 2), dtype=torch.uint8
            )
            tensors[f"{path}_scales"] = torch.randint(118, 122, groups, dtype=torch.uint8)
        else:
            tensors[path] = torch.randn(parameter.shape, dtype=torch.bfloat16) * 0.02
    return tensors


def _pack_fp8(model: nn.Module, skipped: list[str]) -> dict[str, torch.Tensor]:
    linears = {
        f"{path}.weight" for path, module in model.named_modules() if type(module) is nn.Linear
    }
    tensors: dict[str, torch.Tensor] = {}
    for path, parameter in model.named_parameters():
        is_expert = path.endswith(("experts.gate_up_proj", "experts.down_proj"))
        is_left_out = "lm_head" in path or any(path.startswith(name) for name in skipped)
        if not is_expert and (path not in linears or is_left_out):
            tensors[path] = torch.randn(parameter.shape, dtype=torch.bfloat16) * 0.02
            continue
        *experts, rows, columns = parameter.shape
        # Below 0x70, so that none is a NaN.
        packed = torch.randint(0x70, parameter.shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
        scales = torch.full((*experts, -(-rows // _BLOCK), -(-columns // _BLOCK)), 1e-4)
        tensors[path] = packed
        name = path.removesuffix(".weight")
        tensors[f"{name}_scale_inv" if is_expert else f"{name}.weight_scale_inv"] = scales
    return tensors


@contextmanager
def offer_kernels(sources: Path | None) -> Iterator[None]:
    """Let transformers find kernels in a folder of sources, as if the Hub had sent them."""
    if sources is None:
        yield
        return
    from transformers.integrations import finegrained_fp8, hub_kernels

    quantizer_mxfp4: Any = importlib.import_module("transformers.quantizers.quantizer_mxfp4")

    sys.path.insert(0, str(sources))
    before = (quantizer_mxfp4.is_kernels_available, hub_kernels.get_kernel)
    gpt_oss = importlib.import_module("gpt_oss_triton_kernels")
    quantizer_mxfp4.is_kernels_available = lambda *_: True
    hub_kernels.get_kernel = lambda *_, **__: gpt_oss
    try:
        fp8 = importlib.import_module("finegrained_fp8")
        _try_fewer_tilings("finegrained_fp8")
        finegrained_fp8._FINEGRAINED_FP8 = finegrained_fp8.FineGrainedFP8(
            fp8.matmul_2d, fp8.matmul_batched, fp8.matmul_grouped
        )
    except ImportError as error:
        show({"error": f"finegrained_fp8: {error}"})
    try:
        yield
    finally:
        sys.path.remove(str(sources))
        quantizer_mxfp4.is_kernels_available, hub_kernels.get_kernel = before
        finegrained_fp8._FINEGRAINED_FP8 = None


def _try_fewer_tilings(package: str) -> None:
    from triton.runtime.autotuner import Autotuner

    for name, module in list(sys.modules.items()):
        if not name.startswith(f"{package}."):
            continue
        for tuner in vars(module).values():
            if isinstance(tuner, Autotuner):
                few = [c for c in tuner.configs if c.num_warps in (4, 8) and c.num_stages == 2]
                tuner.configs = few or tuner.configs


def _describe_gpu() -> dict[str, Any]:
    packages = {}
    for name in ("triton", "kernels", "bitsandbytes", "compressed_tensors", "gptqmodel"):
        try:
            module = importlib.import_module(name)
            packages[name] = getattr(module, "__version__", "present")
        except ImportError:
            packages[name] = "missing"
    return {
        "gpu": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "nvcc": shutil.which("nvcc"),
        **packages,
    }


def _release() -> None:
    gc.collect()
    # The workspaces of matrix products would count toward the next case.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
