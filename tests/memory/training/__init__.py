"""Tests of moetool.memory.training."""
