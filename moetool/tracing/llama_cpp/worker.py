"""Run prompts through llama.cpp, and write each layer's choices to stdout.

This is the program of another process (`python -m moetool.tracing.llama_cpp.worker`), so that a crash
of llama.cpp leaves the trace alone. It reads a JSON object from stdin. For each prompt it writes a
line of JSON, and after it, for each layer, ids as int32 and weights as float32.

While a graph runs, llama.cpp calls back for each tensor. `ffn_moe_argsort-N` has all experts of layer
N in the order of choice, and the last of `ffn_moe_weights…-N` has the weights of those that run.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Its structures change between versions.
VERSIONS = ("0.3.36",)
_TENSOR = re.compile(r"ffn_moe_(?P<kind>argsort|weights(?:_norm|_scaled|_softmax)?)-(?P<layer>\d+)")
_CACHE_TYPES = {"f32": 0, "f16": 1}


class WorkerError(Exception):
    """A prompt or a file can't be run; the message says why."""


class Recorder:
    """The tensors of routed layers that llama.cpp computed, by layer and in order."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.ggml_get_name.restype = ctypes.c_char_p
        library.ggml_nbytes.restype = ctypes.c_size_t
        library.ggml_nelements.restype = library.ggml_nrows.restype = ctypes.c_int64
        self._library = library
        self._orders: dict[int, list[NDArray[np.int32]]] = {}
        # The last kind of weights that a layer computes replaces those before it.
        self._weights: dict[int, dict[str, list[NDArray[np.float32]]]] = {}

    def see(self, tensor: int, is_asked: bool, _data: object) -> bool:
        """Return whether a tensor is wanted; if it is computed, keep it."""
        pointer = ctypes.c_void_p(tensor)
        found = _TENSOR.fullmatch(self._library.ggml_get_name(pointer).decode(errors="replace"))
        if found is None:
            return not is_asked
        if is_asked:
            return True
        num_bytes = self._library.ggml_nbytes(pointer)
        content = (ctypes.c_char * num_bytes)()
        self._library.ggml_backend_tensor_get(
            pointer, content, ctypes.c_size_t(0), ctypes.c_size_t(num_bytes)
        )
        layer = int(found["layer"])
        if found["kind"] == "argsort":
            rows = self._library.ggml_nrows(pointer)
            order = np.frombuffer(content, dtype=np.int32).reshape(rows, -1)
            self._orders.setdefault(layer, []).append(order)
        else:
            values = np.frombuffer(content, dtype=np.float32)
            self._weights.setdefault(layer, {}).setdefault(found["kind"], []).append(values)
        return True

    def take(
        self, num_tokens: int
    ) -> dict[int, tuple[NDArray[np.int32], NDArray[np.float32], int]]:
        """Return the ids and weights of each layer, and its number of experts; forget them.

        Raises:
            WorkerError: A layer computed them for fewer tokens, or not at all.
        """
        layers = {}
        for layer, orders in sorted(self._orders.items()):
            order = np.concatenate(orders)
            kinds = self._weights.get(layer, {})
            if not kinds or len(order) != num_tokens:
                raise WorkerError(f"layer {layer} shows {len(order)} of {num_tokens} decisions")
            weights = np.concatenate(list(kinds.values())[-1]).reshape(num_tokens, -1)
            layers[layer] = (order[:, : weights.shape[1]], weights, order.shape[1])
        self._orders, self._weights = {}, {}
        return layers


def run(job: dict[str, Any], output: BinaryIO) -> None:
    """Run all prompts of a job.

    Raises:
        WorkerError: The file can't be loaded, has no tokenizer, or a prompt can't be run.
    """
    import llama_cpp  # type: ignore[import-not-found]

    if llama_cpp.__version__ not in VERSIONS:
        raise WorkerError(
            f"llama-cpp-python {llama_cpp.__version__} is not known; {', '.join(VERSIONS)} is"
        )
    folder = Path(llama_cpp.__file__).parent / "lib"
    recorder = Recorder(ctypes.CDLL(str(next(folder.glob("libggml-base.*")))))
    llama_cpp.llama_backend_init()
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = job["num_gpu_layers"]
    model = llama_cpp.llama_model_load_from_file(job["path"].encode(), model_params)
    if not model:
        raise WorkerError("llama.cpp could not load the file")
    vocab = llama_cpp.llama_model_get_vocab(model)
    prompts = [_tokenize(llama_cpp, vocab, prompt) for prompt in job["prompts"]]
    params = llama_cpp.llama_context_default_params()
    longest = max(map(len, prompts))
    params.n_ctx = params.n_batch = longest
    params.n_ubatch = min(longest, job["ubatch"])
    params.n_seq_max = 1
    params.type_k = params.type_v = _CACHE_TYPES[job["cache_type"]]
    if job["num_threads"]:
        params.n_threads = params.n_threads_batch = job["num_threads"]
    callback = llama_cpp.ggml_backend_sched_eval_callback(recorder.see)
    params.cb_eval = callback
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise WorkerError("llama.cpp could not make a context")
    batch = llama_cpp.llama_batch_init(longest, 0, 1)
    for number, tokens in enumerate(prompts):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            # Else the last layer runs the last token only.
            batch.logits[place] = 1
        if llama_cpp.llama_decode(context, batch):
            raise WorkerError(f"llama.cpp could not run prompt {number + 1}")
        layers = recorder.take(len(tokens))
        line = {
            "tokens": tokens,
            "layers": [[n, each[0].shape[1], each[2]] for n, each in layers.items()],
        }
        output.write(json.dumps(line).encode() + b"\n")
        for experts, weights, _ in layers.values():
            output.write(np.ascontiguousarray(experts, dtype="<i4").tobytes())
            output.write(np.ascontiguousarray(weights, dtype="<f4").tobytes())
        output.flush()


def _tokenize(llama_cpp: Any, vocab: Any, prompt: str | list[int]) -> list[int]:
    """Return the ids of a prompt, by the file's own tokenizer unless they are given."""
    if isinstance(prompt, list):
        return prompt
    text = prompt.encode()
    if llama_cpp.llama_vocab_type(vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        raise WorkerError("the file has no tokenizer")
    # Without room, the number of tokens is returned as a negative one.
    room = -llama_cpp.llama_tokenize(vocab, text, len(text), None, 0, True, False)
    ids = (llama_cpp.llama_token * max(room, 0))()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), ids, room, True, False)
    if count <= 0:
        raise WorkerError("a prompt has no tokens")
    return list(ids[:count])


def main() -> None:
    """Run the job on stdin; a line of JSON with `error` ends the output if it fails."""
    output = sys.stdout.buffer
    try:
        run(json.load(sys.stdin), output)
    except WorkerError as error:
        output.write(json.dumps({"error": str(error)}).encode() + b"\n")
        output.flush()


if __name__ == "__main__":
    main()
