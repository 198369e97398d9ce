"""Tests of modules in memory that are counted by their structure."""
