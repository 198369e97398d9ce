"""This process: its messages, its garbage, and the cores that it may use."""
