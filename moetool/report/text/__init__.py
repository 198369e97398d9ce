"""Numbers, tables and lines of text for a terminal."""
