"""Decisions on their way from the devices that made them to host memory."""
