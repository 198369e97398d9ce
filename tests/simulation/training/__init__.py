"""Tests of `moetool.simulation.training`."""
