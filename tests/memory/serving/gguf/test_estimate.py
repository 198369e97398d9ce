"""Estimates for GGUF files: sums, flags that make a model fit, and what is unknown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moetool.catalogue.gpus import find_gpu
from moetool.checkpoint.gguf.files import GgufModel, open_gguf
from moetool.errors import UsageError
from moetool.memory.serving.ggml.allocation.scheduler import GPU, HOST
from moetool.memory.serving.gguf.estimate import ALL_LAYERS, estimate_gguf
from moetool.memory.serving.gguf.question import GgufQuestion
from tests.anatomy.gguf.converted import lay_down, read_converted
from tests.checkpoint.gguf.writer import count_bytes, moe_metadata, moe_tensors, write_gguf
from tests.command import RunMoetool

NUM_LAYERS = 12
EXPERTS_OF_LAYER = 3 * count_bytes("q4_K", (8, 256, 256))
# With CUDA, the last row ends at a multiple of 512 numbers, and a tensor at one of 128 bytes.
ROW = count_bytes("q4_K", (256,))
EXPERTS_ON_GPU = 3 * -(-(EXPERTS_OF_LAYER // 3 + ROW) // 128) * 128


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metadata = moe_metadata(block_count=NUM_LAYERS)
    tensors = moe_tensors(num_layers=NUM_LAYERS)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", metadata, tensors)


@pytest.fixture(scope="module")
def model(path: Path) -> GgufModel:
    return open_gguf(path)


def ask(**question: object) -> GgufQuestion:
    return GgufQuestion(**({"context": 2048, "gpu": find_gpu("24GiB")} | question))  # type: ignore[arg-type]


def test_experts_on_the_host_leave_the_gpu_without_them(model: GgufModel) -> None:
    whole = estimate_gguf("tiny", model, ask())
    split = estimate_gguf("tiny", model, ask(num_cpu_moe=5))
    assert whole.on_gpu is not None
    assert split.on_gpu is not None
    assert whole.on_gpu.weights - split.on_gpu.weights == 5 * EXPERTS_ON_GPU
    assert whole.fits
    assert "--n-cpu-moe 5" in split.flags
    named = ask(moves=((r"blk\.[0-4]\.ffn_\w+_exps", HOST),))
    assert estimate_gguf("tiny", model, named).on_gpu == split.on_gpu


def test_patterns_may_bring_tensors_to_the_gpu(model: GgufModel) -> None:
    found = estimate_gguf("tiny", model, ask(num_gpu_layers=0, moves=(("_exps", GPU),)))
    assert found.on_gpu is not None
    assert found.on_gpu.weights == NUM_LAYERS * EXPERTS_ON_GPU
    assert found.on_gpu.cache == 0


def test_fewest_experts_go_to_the_host(model: GgufModel) -> None:
    whole = estimate_gguf("tiny", model, ask())
    assert whole.gpu_bytes is not None
    for missing in (1, EXPERTS_OF_LAYER + 1, 4 * EXPERTS_OF_LAYER + 1):
        gpu = find_gpu(f"{whole.gpu_bytes - missing}B")
        found = estimate_gguf("tiny", model, ask(gpu=gpu))
        assert found.fits is False
        assert found.short_bytes == missing
        fitting = found.fitting
        assert fitting is not None
        assert fitting.num_gpu_layers == ALL_LAYERS
        assert fitting.gpu_bytes <= gpu.memory_bytes
        fewer = estimate_gguf("tiny", model, ask(gpu=gpu, num_cpu_moe=fitting.num_cpu_moe - 1))
        assert fewer.fits is False
        same = estimate_gguf("tiny", model, ask(gpu=gpu, num_cpu_moe=fitting.num_cpu_moe))
        assert same.gpu_bytes == fitting.gpu_bytes


def test_an_allowance_is_kept_free(model: GgufModel) -> None:
    whole = estimate_gguf("tiny", model, ask())
    assert whole.gpu_bytes is not None
    gpu = find_gpu(f"{whole.gpu_bytes}B")
    assert estimate_gguf("tiny", model, ask(gpu=gpu)).fits
    found = estimate_gguf("tiny", model, ask(gpu=gpu, overhead_bytes=100))
    assert found.short_bytes == 100


def test_a_token_reads_its_experts_and_the_cache(model: GgufModel) -> None:
    found = estimate_gguf("tiny", model, ask(gpu=None))
    row = count_bytes("q4_K", (256,))
    sizes = {name: count_bytes(*each) for name, each in moe_tensors(num_layers=NUM_LAYERS).items()}
    experts = NUM_LAYERS * EXPERTS_OF_LAYER
    weights = sum(sizes.values()) - sizes["token_embd.weight"] + row - experts + experts // 4
    cache = NUM_LAYERS * 2 * 128 * 2 * 2048
    assert found.host_read_bytes == weights + cache
    assert found.on_host.cache == cache


@pytest.mark.parametrize(
    ("architecture", "cache"), [("qwen3", 2 * 2 * 128 * 2 * 2048), ("newmoe", None)]
)
def test_what_is_not_known_is_unknown(tmp_path: Path, architecture: str, cache: int | None) -> None:
    metadata = moe_metadata() | {"general.architecture": architecture}
    metadata |= {f"{architecture}.{k.partition('.')[2]}": v for k, v in moe_metadata().items()}
    model = open_gguf(write_gguf(tmp_path / "a.gguf", metadata, moe_tensors()))
    found = estimate_gguf("new", model, ask())
    assert found.on_gpu is not None
    assert found.on_gpu.weights > 0
    assert found.on_gpu.compute is None
    assert found.on_gpu.cache == cache
    assert found.fits is None
    assert found.fitting is None
    assert any(architecture in note for note in found.notes)


def test_flash_attention_is_off_where_cuda_has_no_kernel(model: GgufModel, tmp_path: Path) -> None:
    odd = moe_metadata(attention__key_length=32, attention__value_length=32)
    narrow = open_gguf(write_gguf(tmp_path / "narrow.gguf", odd, moe_tensors()))

    chosen = estimate_gguf("narrow", narrow, ask())
    assert not chosen.has_flash_attention
    assert any("CUDA has no kernel" in note for note in chosen.notes)
    assert "-fa" not in chosen.flags
    forced = estimate_gguf("narrow", narrow, ask(flash_attention=True))
    assert any("runs on the host" in note for note in forced.notes)
    assert "-fa on" in forced.flags
    assert forced.on_host.compute != chosen.on_host.compute
    assert estimate_gguf("narrow", narrow, ask(gpu=None)).has_flash_attention

    off = estimate_gguf("tiny", model, ask(flash_attention=False))
    assert "-fa off" in off.flags
    assert off.on_gpu is not None
    assert off.on_gpu != estimate_gguf("tiny", model, ask()).on_gpu
    with pytest.raises(UsageError, match="caches values in q8_0 with flash attention only"):
        estimate_gguf("tiny", model, ask(flash_attention=False, type_v="q8_0"))


def test_several_gpus_share_the_layers(model: GgufModel) -> None:
    one, two = estimate_gguf("tiny", model, ask()), estimate_gguf("tiny", model, ask(num_gpus=2))
    assert len(two.on_gpus) == two.num_gpus == 2
    assert two.on_gpu in two.on_gpus
    assert one.on_gpu is not None
    assert sum(each.weights for each in two.on_gpus) == one.on_gpu.weights
    assert sum(each.cache or 0 for each in two.on_gpus) == one.on_gpu.cache
    assert two.gpu_bytes == max(each.total or 0 for each in two.on_gpus)
    assert any("divided evenly" in note for note in two.notes)
    assert two.gpu_read_bytes == one.gpu_read_bytes

    # Of 13 parts, the head counted as one, the first GPU has the first ten.
    split = estimate_gguf("tiny", model, ask(num_gpus=2, shares=(3.0, 1.0)))
    assert "-ts 3,1" in split.flags
    caches = [each.cache or 0 for each in split.on_gpus]
    assert caches[0] == 5 * caches[1]
    moved = estimate_gguf("tiny", model, ask(num_gpus=2, moves=(("_exps", 1),)))
    assert "-ot '_exps=CUDA1'" in moved.flags
    assert moved.on_gpus[1].weights > moved.on_gpus[0].weights


def test_gpus_of_other_vendors_are_not_confirmed(model: GgufModel) -> None:
    notes = estimate_gguf("tiny", model, ask(gpu=find_gpu("mi300x"))).notes
    assert any("not confirmed for GPUs of AMD" in note for note in notes)


def test_every_format_shows_it(path: Path, run_moetool: RunMoetool) -> None:
    arguments = ("memory-estimate", path, "--gpu", "8MiB", "--ctx-size", "1024")
    page = run_moetool(*arguments).stdout
    assert "Does not fit on" in page
    assert "--n-cpu-moe" in page
    (value,) = json.loads(run_moetool(*arguments, "--format", "json").stdout)["estimates"]
    assert value["gpu_bytes"] == sum(value["on_gpu"].values())
    assert value["context"] == 1024
    head, row = run_moetool(*arguments, "--format", "csv").stdout.splitlines()
    columns = dict(zip(head.split(","), row.split(","), strict=True))
    assert columns["gpu_bytes"] == str(value["gpu_bytes"])
    assert next(iter(columns)) == "model"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quantization", "nf4"), "that llama.cpp doesn't have"),
        (("--engine", "vllm"), "that llama.cpp doesn't have"),
        (("--batch-size", "1,2"), "one number of sequences"),
        (("--cache-type-k", "q9"), "'q9' is not a type"),
        (("--n-cpu-moe", "3"), "no GPU is named"),
        (("--gpu", "24GiB", "--override-tensor", "exps=TPU"), "not a pattern and a device"),
        (("--gpu", "24GiB", "--override-tensor", "(=CPU"), "not a pattern and a device"),
        (("--gpu", "2x9GiB", "--override-tensor", "a=CUDA2"), "not a pattern and a device"),
        (("--gpu", "2x9GiB", "--tensor-split", "3"), "'3' is not a part for each of 2 GPUs."),
        (("--gpu", "9GiB", "--tensor-split", "3,x"), "'3,x' is not a part for each of 1 GPU."),
        (("--gpu", "17x9GiB"), "llama.cpp uses 16 GPUs at most, and 17 are named."),
        (("--flash-attn", "maybe"), "'maybe' is not a mode of flash attention."),
    ],
)
def test_options_without_meaning_are_refused(
    path: Path, run_moetool: RunMoetool, arguments: tuple[str, ...], words: str
) -> None:
    done = run_moetool("memory-estimate", path, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_options_about_gguf_files_need_one(path: Path, run_moetool: RunMoetool) -> None:
    done = run_moetool("memory-estimate", "mixtral-8x7b", "--ctx-size", "1024")
    assert done.returncode == 2
    assert "no GGUF file is named" in done.stderr
    done = run_moetool("memory-estimate", "mixtral-8x7b", path)
    assert done.returncode == 2
    assert "separate commands" in done.stderr


def test_types_that_llama_cpp_refuses_are_refused(model: GgufModel, tmp_path: Path) -> None:
    line = read_converted()["deepseek_v3"]
    latent = open_gguf(lay_down(line, tmp_path / "latent.gguf"))
    with pytest.raises(UsageError, match="one latent"):
        estimate_gguf("latent", latent, ask(type_k="q8_0"))
    metadata = moe_metadata(attention__key_length=20, attention__value_length=20)
    narrow = open_gguf(write_gguf(tmp_path / "narrow.gguf", metadata, moe_tensors()))
    with pytest.raises(UsageError, match="40 cached numbers do not fill blocks of q8_0"):
        estimate_gguf("narrow", narrow, ask(type_k="q8_0", type_v="q8_0"))
    assert estimate_gguf("tiny", model, ask(type_k="q8_0")).on_gpu is not None
