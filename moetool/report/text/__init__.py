"""Format numbers, tables and lines of text for a terminal."""
