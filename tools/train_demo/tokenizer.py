"""The tokenizer, and the sizes that it shares with the model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tools.train_demo.corpus import Domain

VOCAB_SIZE = 2048
CONTEXT_TOKENS = 512
BOS = "<s>"
# Every domain has the same influence on the tokenizer, however much text it has.
TOKENIZER_CHARS = 1_400_000

TokenIds = NDArray[np.int64]


def train_tokenizer(domains: list[Domain]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE trained on the training text; it puts `<s>` before every prompt."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<pad>", BOS, "</s>"]
    tokenizer.train_from_iterator(
        (domain.train[:TOKENIZER_CHARS] for domain in domains),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=special_tokens,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    pad, bos, eos = special_tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
