"""Tests of the processes that trace together."""
