"""A stand-in for llama-cpp-python and ggml: a tiny router, evaluated as llama.cpp evaluates a graph.

Tokens are letters. A token's hidden state is its embedding and the mean of all up to it, which it
keeps in a cache. The graph is computed node by node, with a callback for each; the last layer runs only
tokens whose logits are asked for; and memory is used again after its last reader.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

VOCAB_SIZE, HIDDEN_SIZE, NUM_EXPERTS, TOP_K, NUM_LAYERS = 12, 6, 5, 2, 3
BOS, END = 0, 11
_RANDOM = np.random.default_rng(0)
EMBEDDING = _RANDOM.normal(size=(VOCAB_SIZE, HIDDEN_SIZE)).astype(np.float32)
ROUTERS = _RANDOM.normal(size=(NUM_LAYERS, NUM_EXPERTS, HIDDEN_SIZE)).astype(np.float32)
HEAD = _RANDOM.normal(size=(VOCAB_SIZE, HIDDEN_SIZE)).astype(np.float32)


def hidden_states(tokens: list[int]) -> np.ndarray:
    """Return the hidden states of a whole text. # (num_tokens, HIDDEN_SIZE)"""
    embedded = EMBEDDING[tokens].astype(np.float64)
    means = np.cumsum(embedded, axis=0) / np.arange(1, len(tokens) + 1)[:, None]
    return (embedded + means).astype(np.float32)


def probabilities(layer: int, hidden: np.ndarray) -> np.ndarray:
    """Return the router's probabilities. # (num_tokens, NUM_EXPERTS)"""
    scores: np.ndarray = np.exp(hidden @ ROUTERS[layer].T)
    shares: np.ndarray = scores / scores.sum(axis=1, keepdims=True)
    return shares.astype(np.float32)


@dataclass
class Tensor:
    """A tensor of a graph."""

    name: str
    operation: str
    content: np.ndarray
    sources: tuple[int, ...] = ()
    view_source: int = 0


@dataclass
class Tensors:
    """ggml, with tensors by made-up addresses."""

    version: str = "0.25.3"
    is_with_gpu: bool = False
    by_address: dict[int, Tensor] = field(default_factory=dict)

    def add(self, tensor: Tensor) -> int:
        address = len(self.by_address) + 1
        self.by_address[address] = tensor
        return address

    def has_gpu(self) -> bool:
        return self.is_with_gpu

    def name(self, tensor: int) -> str:
        return self.by_address[tensor].name

    def operation(self, tensor: int) -> str:
        return self.by_address[tensor].operation

    def sources(self, tensor: int) -> list[int]:
        found = self.by_address[tensor].sources
        return [*found, *[0] * (10 - len(found))]

    def view_source(self, tensor: int) -> int:
        return self.by_address[tensor].view_source

    def rows_and_columns(self, tensor: int) -> tuple[int, int]:
        content = self.by_address[tensor].content
        return content.size // content.shape[-1], content.shape[-1]

    def read(self, tensor: int) -> bytes:
        return self.by_address[tensor].content.tobytes()


def build_layer(
    tensors: Tensors, layer: int, hidden: np.ndarray, *, rename: dict[str, str] | None = None
) -> list[int]:
    """Return the nodes of one routed layer, under llama.cpp's names unless they are changed."""
    rename = rename or {}

    def add(name: str, operation: str, content: np.ndarray, *sources: int, view: int = 0) -> int:
        whole = f"ffn_moe_{rename.get(name, name)}-{layer}"
        return tensors.add(Tensor(whole, operation, content, sources, view))

    probs = probabilities(layer, hidden)
    order = np.argsort(-probs, axis=1).astype(np.int32)
    chosen = order[:, :TOP_K]
    picked = np.take_along_axis(probs, chosen, axis=1)
    shares = (picked / picked.sum(axis=1, keepdims=True)).astype(np.float32)
    probs_at = add("probs", "SOFT_MAX", probs)
    order_at = add("argsort", "ARGSORT", order, probs_at)
    choice_at = add("topk", "VIEW", chosen, order_at, view=order_at)
    weights_at = add("weights", "GET_ROWS", picked[:, :, None], probs_at, choice_at)
    norm_at = add("weights_norm", "DIV", shares, weights_at)
    up_at = add("up", "MUL_MAT_ID", hidden, 0, 0, choice_at)
    down_at = add("down", "MUL_MAT_ID", hidden, 0, up_at, choice_at)
    weighted_at = add("weighted", "MUL", hidden, down_at, norm_at)
    return [probs_at, order_at, choice_at, weights_at, norm_at, up_at, down_at, weighted_at]


class LlamaCpp:
    """The functions of llama-cpp-python that are used.

    Attributes:
        tensors: Those of the last graphs.
        batch_sizes: Of each evaluation.
        fails_at: The evaluation that fails.
        is_diffusion: Whether the model fills in a text in no order.
    """

    LLAMA_VOCAB_TYPE_NONE = 0
    llama_token = ctypes.c_int32
    __version__ = "0.3.36"
    __file__ = __file__

    def __init__(self, *, has_tokenizer: bool = True, is_loadable: bool = True) -> None:
        self.tensors = Tensors()
        self.batch_sizes: list[int] = []
        self.fails_at: int | None = None
        self.is_diffusion = False
        self._has_tokenizer, self._is_loadable = has_tokenizer, is_loadable
        self._cache: list[int] = []
        self._callback: Callable[[int, bool, object], bool] | None = None
        self._logits: np.ndarray | None = None

    def llama_backend_init(self) -> None:
        """Do nothing."""

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace(n_gpu_layers=-1)

    def llama_model_load_from_file(self, _path: bytes, _params: Any) -> object:
        return self if self._is_loadable else None

    def llama_model_get_vocab(self, model: object) -> object:
        return model

    def llama_model_is_diffusion(self, _model: object) -> bool:
        return self.is_diffusion

    def llama_vocab_type(self, _vocab: object) -> int:
        return 1 if self._has_tokenizer else self.LLAMA_VOCAB_TYPE_NONE

    def llama_vocab_n_tokens(self, _vocab: object) -> int:
        return VOCAB_SIZE

    def llama_vocab_is_eog(self, _vocab: object, token: int) -> bool:
        return token == END

    def llama_vocab_get_text(self, _vocab: object, token: int) -> bytes:
        return b"<s>" if token == BOS else chr(ord("a") + token).encode()

    def llama_tokenize(
        self,
        _vocab: object,
        text: bytes,
        size: int,
        ids: Any,
        room: int,
        special: bool,
        _parse: bool,
    ) -> int:
        found = [*([BOS] if special else []), *(byte - ord("a") for byte in text[:size])]
        if len(found) > room:
            return -len(found)
        ids[: len(found)] = found
        return len(found)

    def llama_context_default_params(self) -> Any:
        return SimpleNamespace(n_ctx=512, n_batch=2048, n_ubatch=512)

    def ggml_backend_sched_eval_callback(self, function: Any) -> Any:
        return function

    def llama_init_from_model(self, _model: object, params: Any) -> object:
        self._callback = params.cb_eval
        return params if params.n_ctx <= 4096 else None

    def llama_batch_init(self, size: int, _embd: int, _sequences: int) -> Any:
        return SimpleNamespace(
            n_tokens=0,
            **{name: [0] * size for name in ("token", "pos", "n_seq_id", "logits")},
            seq_id=[[0] for _ in range(size)],
        )

    def llama_get_memory(self, context: object) -> object:
        return context

    def llama_memory_clear(self, _memory: object, _data: bool) -> None:
        self._cache.clear()

    def llama_get_logits_ith(self, _context: object, place: int) -> Any:
        assert self._logits is not None
        return self._logits[place].ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def llama_decode(self, context: Any, batch: Any) -> int:
        self.batch_sizes.append(batch.n_tokens)
        if len(self.batch_sizes) == self.fails_at:
            return 1
        assert batch.n_tokens <= context.n_ubatch
        start = len(self._cache)
        assert batch.pos[: batch.n_tokens] == list(range(start, start + batch.n_tokens))
        self._cache += batch.token[: batch.n_tokens]
        if len(self._cache) > context.n_ctx:
            return 1
        hidden = hidden_states(self._cache)[start:]
        is_output = np.array(batch.logits[: batch.n_tokens], dtype=bool)
        self._logits = np.ascontiguousarray(hidden[is_output] @ HEAD.T)
        for layer in range(NUM_LAYERS):
            ran = hidden[is_output] if layer == NUM_LAYERS - 1 else hidden
            self._compute(build_layer(self.tensors, layer, ran))
        return 0

    def _compute(self, nodes: list[int]) -> None:
        assert self._callback is not None
        for node in nodes:
            if self._callback(node, True, None) and not self._callback(node, False, None):
                return
        # The experts have read all: other tensors take the memory.
        for node in nodes:
            self.tensors.by_address[node].content = np.zeros_like(
                self.tensors.by_address[node].content
            )
