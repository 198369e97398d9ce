"""Layers of frameworks that need a GPU, recorded and compared with what their weights compute."""
