"""Tests of the parameter table of any module."""
