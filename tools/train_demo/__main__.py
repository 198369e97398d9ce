"""Train the demonstration checkpoint, a small Mixtral, on a folder of `<domain>.txt` files.

    python -m tools.train_demo CORPUS_FOLDER OUTPUT_FOLDER

Two domains are added to those of the folder: Python source (the standard library of the
interpreter that runs this) and generated arithmetic. The last 5 % of every domain is held out.
`SOURCES.json` in the corpus folder, `{domain: where its text is from}`, goes into the card.
Takes a few minutes on one GPU. Needs nothing but the packages moetool itself depends on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import transformers

from tools.train_demo.card import write_card
from tools.train_demo.corpus import read_domains
from tools.train_demo.scores import DomainScore, bigram_bits, evaluate, unigram_bits
from tools.train_demo.tokenizer import CONTEXT_TOKENS, VOCAB_SIZE, TokenIds, train_tokenizer
from tools.train_demo.training import BALANCE_LOSS_WEIGHT, build_model, train


def main() -> None:
    """Train, evaluate, and write the checkpoint with its card and its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder of <domain>.txt files")
    parser.add_argument("output", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    domains = read_domains(args.corpus, seed=args.seed)
    tokenizer = train_tokenizer(domains)
    bos = tokenizer.bos_token_id

    def encode(text: str) -> TokenIds:
        return np.array(tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)

    train_tokens = [encode(domain.train) for domain in domains]
    held_out_tokens = [encode(domain.held_out) for domain in domains]
    model = build_model(tokenizer).to(args.device)
    num_params = sum(p.numel() for p in model.parameters())
    print(f"{num_params} parameters, {sum(map(len, train_tokens))} training tokens", flush=True)

    start = time.monotonic()
    train(
        model, train_tokens, bos=bos, steps=args.steps, batch_size=args.batch_size, seed=args.seed
    )
    minutes = (time.monotonic() - start) / 60
    torch.set_float32_matmul_precision("highest")

    scores = []
    assignments = np.zeros((model.config.num_hidden_layers, model.config.num_local_experts))
    for domain, learned, tokens in zip(domains, train_tokens, held_out_tokens, strict=True):
        num_bytes = len(domain.held_out.encode())
        bits, domain_assignments = evaluate(model, tokens, bos=bos)
        assignments += domain_assignments
        scores.append(
            DomainScore(
                name=domain.name,
                source=domain.source,
                train_bytes=len(domain.train.encode()),
                held_out_bytes=num_bytes,
                model=bits / num_bytes,
                bigram=bigram_bits(learned, tokens) / num_bytes,
                unigram=unigram_bits(learned, tokens) / num_bytes,
            )
        )
        print(scores[-1], flush=True)

    recipe = {
        "architecture": "Mixtral: 6 layers, 8 experts a layer, top-2, hidden 128, expert width 128",
        "tokenizer": f"byte-level BPE, {VOCAB_SIZE} tokens, trained on the same training text",
        "context": f"{CONTEXT_TOKENS} tokens",
        "optimizer": "AdamW (0.9, 0.95), weight decay 0.1, peak learning rate 4e-3, cosine decay",
        "steps": f"{args.steps} of {args.batch_size} sequences, domains drawn evenly",
        "load balancing": f"Switch loss per layer, weight {BALANCE_LOSS_WEIGHT}",
        "seed": str(args.seed),
        "time": f"{minutes:.1f} minutes on "
        + (torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device),
        "software": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    args.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    shares = assignments / assignments.sum(1, keepdims=True)
    write_card(args.output, scores=scores, shares=shares, recipe=recipe, num_params=num_params)
    print(json.dumps({"expert_shares": shares.round(4).tolist()}))


if __name__ == "__main__":
    main()
