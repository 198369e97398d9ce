"""Tables of rows written as a trace that appears whole or not at all."""
