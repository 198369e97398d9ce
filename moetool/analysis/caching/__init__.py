"""Experts kept on the GPU while the others stay in the host's memory."""
