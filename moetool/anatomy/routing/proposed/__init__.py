"""Modules that are proposed as experts, of which the recorder proves that they are routed to."""
