"""Tests of the model of ggml's graphs and its allocator."""
