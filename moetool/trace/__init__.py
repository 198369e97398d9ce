"""The trace itself: its columns, how it is written and read. Knows neither torch nor models."""
