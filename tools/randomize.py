"""Write a copy of a checkpoint with random weights, the control for every claim about routing.

    python tools/randomize.py OUTPUT_FOLDER [CHECKPOINT_FOLDER]

The copy has the architecture and tokenizer of the original (by default the demonstration
checkpoint), and the weights with which its class initialises it, with seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from moetool.catalogue.names import demo_folder


def main() -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=demo_folder())
    args = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.checkpoint))
    model.save_pretrained(args.output)
    AutoTokenizer.from_pretrained(args.checkpoint).save_pretrained(args.output)


if __name__ == "__main__":
    main()
