"""Inspections of a model by what there is of it: its skeleton, headers, a module or an adapter."""
