"""What the header or the footer of a file says of a trace, before its rows are read."""
