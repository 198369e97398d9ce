"""Memory of engines that serve a model: weights, cache per token, and how many users fit."""
