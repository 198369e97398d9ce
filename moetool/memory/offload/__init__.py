"""Routed experts kept in the host's memory."""
