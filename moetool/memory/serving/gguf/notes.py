"""Sentences that go with what llama.cpp allocates for a GGUF file."""

from __future__ import annotations

from moetool.checkpoint.gguf.files import GgufModel
from moetool.memory.serving.gguf.buffers import GgufRun, has_gpu_attention
from moetool.memory.serving.gguf.question import GgufQuestion
from moetool.memory.serving.gguf.sizes import list_caches, read_model_sizes

_NO_CACHE = (
    "The cache is unknown: what {architecture} keeps of a token is not known here; "
    "windows and states have their own rules."
)
_NO_GRAPH = (
    "The compute buffers are unknown: the graph that llama.cpp builds for {architecture} is not "
    "known here."
)
_SEVERAL = (
    "Layers are divided evenly, which llama.cpp does where free memory is equal: --tensor-split sets "
    "the parts."
)
_NVIDIA = "NVIDIA"
_MTP = "Layers that predict further tokens are left out: llama.cpp loads them only to draft with."
_CUDA = (
    "CUDA's context, and what its kernels allocate as they run, are left out: an H200 held 699 to "
    "741 MiB more than these buffers in 12 runs. Give an allowance with --engine-overhead."
)
_OTHER_GPU = (
    "The rules are those of CUDA, and not confirmed for GPUs of {vendor}: their kernels of flash "
    "attention, and what is kept for them, may differ."
)
_NO_ATTENTION = (
    "Flash attention is off, as --flash-attn auto decides: CUDA has no kernel of it for this model's "
    "heads."
)
_ON_HOST = (
    "Flash attention runs on the host, since CUDA has no kernel of it for this model's heads: "
    "--flash-attn auto turns it off."
)
_MAPPED = (
    "The host's weights are mapped from the file: the system reads them when they are used, and may "
    "drop them again."
)


def list_notes(model: GgufModel, run: GgufRun, question: GgufQuestion) -> list[str]:
    """Return the remarks on a run's figures."""
    notes, gpu = [], question.gpu
    if list_caches(model) is None:
        notes.append(_NO_CACHE.format(architecture=model.architecture))
    if read_model_sizes(model) is None:
        notes.append(_NO_GRAPH.format(architecture=model.architecture))
    if model.read_count("nextn_predict_layers"):
        notes.append(_MTP)
    if gpu is not None:
        if question.flash_attention is None and not run.has_flash_attention:
            notes.append(_NO_ATTENTION)
        if question.flash_attention and has_gpu_attention(model, run) is False:
            notes.append(_ON_HOST)
        if question.num_gpus > 1 and not question.shares:
            notes.append(_SEVERAL)
        notes.append(_CUDA)
        if gpu.vendor not in (None, _NVIDIA):
            notes.append(_OTHER_GPU.format(vendor=gpu.vendor))
    notes.append(_MAPPED)
    return notes
