"""Specialization of experts by token: which ids an expert is given, wherever they occur."""
