"""Parameters counted in the model that transformers builds, without weights."""
