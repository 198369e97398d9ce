"""Formats of other tools: llama.cpp and what is built on it, OLMoE, ESFT, moe-policylang."""
