"""The trace: its columns, and how it is written and read. Knows neither torch nor models."""
