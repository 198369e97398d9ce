"""Pickles read by an own interpreter of opcodes, which runs nothing that they name."""
