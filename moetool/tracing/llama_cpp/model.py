"""A GGUF model in llama.cpp: its tokenizer, and its evaluation of prompts, one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moetool.process.cores import count_cores
from moetool.tracing.llama_cpp.decisions import DecisionReader, Decisions, GraphReader
from moetool.tracing.llama_cpp.faults import WorkerError
from moetool.tracing.llama_cpp.graph import RoutedNodes, choose_layers, find_routed_nodes
from moetool.tracing.llama_cpp.options import CACHE_TYPES, FLASH_ATTENTION

See = Callable[..., bool]


@dataclass(frozen=True)
class Evaluated:
    """A prompt that went through the model.

    Attributes:
        tokens: Those that ran: the prompt's, and the new ones except the last.
        num_new_tokens: The tokens that continue it, an end-of-text token included.
        decisions: Of each layer, for these tokens.
    """

    tokens: list[int]
    num_new_tokens: int
    decisions: dict[int, Decisions]


class GgufRun:
    """A loaded file.

    Attributes:
        routed_layers: Numbers of all layers that route, known when it is open.

    Args:
        llama_cpp: The module of llama-cpp-python.
        ggml: The library's tensors.
        job: The path, and the fields of `LlamaCppOptions`.

    Raises:
        WorkerError: llama.cpp can't load the file or has no GPU for its layers, or the model is not
            a causal one.
    """

    routed_layers: list[int]

    def __init__(self, llama_cpp: Any, ggml: Any, job: dict[str, Any]) -> None:
        self._llama_cpp, self._ggml, self._job = llama_cpp, ggml, job
        llama_cpp.llama_backend_init()
        if job["num_gpu_layers"] and not ggml.has_gpu():
            raise WorkerError(
                "its layers can't go to a GPU: llama-cpp-python finds none",
                hint="Leave out --n-gpu-layers, or build llama-cpp-python for your GPU.",
            )
        params = llama_cpp.llama_model_default_params()
        if job["num_gpu_layers"] is not None:
            params.n_gpu_layers = job["num_gpu_layers"]
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(job["path"]), params)
        if not self._model:
            raise WorkerError(
                "llama.cpp could not load the file",
                hint="Run `moetool inspect` on it, or put fewer layers on a GPU.",
            )
        if llama_cpp.llama_model_is_diffusion(self._model):
            # Its tokens see later ones, which pieces of a prompt don't have.
            raise WorkerError(
                "it is a diffusion model, whose text is not written token by token",
                hint="Trace the original checkpoint with transformers.",
                is_untraceable=True,
            )
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        self._see: See = _see_nothing
        self._failure: BaseException | None = None

    def tokenize(self, number: int, prompt: str | list[int]) -> tuple[list[int], bool]:
        """Return the ids of a prompt, and whether it was cut; ids that are given stay as they are.

        Raises:
            WorkerError: The file has no tokenizer, or a text has no tokens.
        """
        ids = prompt if isinstance(prompt, list) else self._tokenize_text(prompt)
        if not ids:
            raise WorkerError(f"prompt {number} has no tokens", hint="Leave it out.")
        limit = self._job["max_prompt_tokens"]
        is_cut = limit is not None and len(ids) > limit
        return ids[:limit], is_cut

    def _tokenize_text(self, prompt: str) -> list[int]:
        llama_cpp, text = self._llama_cpp, prompt.encode()
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise WorkerError(
                "the file has no tokenizer", hint="Convert the model with its vocabulary."
            )
        # As transformers does, tokens such as <|user|> are taken for what they say.
        flags = (self._job["special_tokens"], True)
        # Without room, the number of tokens is returned as a negative one.
        room = -llama_cpp.llama_tokenize(self._vocab, text, len(text), None, 0, *flags)
        ids = (llama_cpp.llama_token * max(room, 0))()
        count = llama_cpp.llama_tokenize(self._vocab, text, len(text), ids, max(room, 0), *flags)
        return list(ids[: max(count, 0)])

    def list_texts(self, tokens: Sequence[int]) -> list[str] | None:
        """Return the tokenizer's own piece of each token; None without a tokenizer."""
        llama_cpp = self._llama_cpp
        if llama_cpp.llama_vocab_type(self._vocab) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            return None
        return [
            (llama_cpp.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")
            for token in tokens
        ]

    def open(self, prompts: Sequence[Sequence[int]]) -> dict[int, RoutedNodes]:
        """Make a context for these prompts, evaluate a token, and return the layers to record.

        Raises:
            WorkerError: There is too little memory or context, or llama.cpp routes in a way that
                is not known.
        """
        llama_cpp, job = self._llama_cpp, self._job
        num_run = [len(tokens) + max(job["max_new_tokens"] - 1, 0) for tokens in prompts]
        context = job["context"] or max(num_run)
        for number, needed in enumerate(num_run, 1):
            if needed > context:
                raise WorkerError(
                    f"prompt {number} needs a context of {needed:,} tokens, and has {context:,}",
                    hint="Give a larger --ctx-size, or cut prompts with --max-prompt-tokens.",
                )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = context
        self._batch_size = min(max(num_run), job["ubatch"])
        # A batch is a micro-batch: logits are kept for all of its tokens.
        params.n_batch = params.n_ubatch = self._batch_size
        params.n_seq_max = 1
        params.type_k, params.type_v = CACHE_TYPES[job["type_k"]], CACHE_TYPES[job["type_v"]]
        params.flash_attn_type = FLASH_ATTENTION[job["flash_attention"]]
        params.n_threads = params.n_threads_batch = job["num_threads"] or count_cores()
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._called_back)
        params.cb_eval = self._callback
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise WorkerError(
                f"llama.cpp could not make a context of {context:,} tokens",
                hint="Give a smaller --ctx-size or --ubatch-size, or other cache types.",
            )
        self._batch = llama_cpp.llama_batch_init(self._batch_size, 0, 1)
        graph = GraphReader(self._ggml)
        self._see = graph.see
        self._run_batch(1, [prompts[0][0]], start=0)
        found = find_routed_nodes(graph.nodes)
        self.routed_layers = list(found)
        layers = choose_layers(found, job["layers"])
        self._decisions = DecisionReader(self._ggml, layers, with_margins=job["with_margins"])
        self._see = self._decisions.see
        return layers

    def evaluate(self, number: int, prompt: list[int]) -> Evaluated:
        """Run a prompt and its continuation, and return the decisions for all tokens that ran.

        Raises:
            WorkerError: llama.cpp can't.
        """
        llama_cpp = self._llama_cpp
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        tokens = list(prompt)
        for start in range(0, len(prompt), self._batch_size):
            self._run_batch(number, prompt[start : start + self._batch_size], start=start)
        num_new_tokens = 0
        while num_new_tokens < self._job["max_new_tokens"]:
            token = self._choose_token()
            num_new_tokens += 1
            is_last = num_new_tokens == self._job["max_new_tokens"]
            if is_last or llama_cpp.llama_vocab_is_eog(self._vocab, token):
                break
            self._run_batch(number, [token], start=len(tokens))
            tokens.append(token)
        return Evaluated(tokens, num_new_tokens, self._decisions.take(len(tokens)))

    def _choose_token(self) -> int:
        """Return the most likely token after the last one that ran."""
        size = self._llama_cpp.llama_vocab_n_tokens(self._vocab)
        logits = self._llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(size,)).argmax())

    def _run_batch(self, number: int, tokens: Sequence[int], *, start: int) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place], batch.pos[place] = token, start + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            # Else the last layer runs the last token only.
            batch.logits[place] = 1
        code = self._llama_cpp.llama_decode(self._context, batch)
        if self._failure is not None:
            raise self._failure
        if code:
            raise WorkerError(
                f"llama.cpp could not evaluate prompt {number} (code {code})",
                hint="Give a smaller --ubatch-size, or a larger --ctx-size.",
            )

    def _called_back(self, tensor: int, is_asked: bool, _data: object) -> bool:
        # An exception would end here, and the graph go on.
        try:
            return self._see(tensor, is_asked=is_asked)
        except BaseException as error:  # noqa: BLE001  raised after the evaluation
            self._failure = self._failure or error
            return False


def _see_nothing(_tensor: int, *, is_asked: bool) -> bool:
    return not is_asked
