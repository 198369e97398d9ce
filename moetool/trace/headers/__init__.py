"""Headers and footers of trace files, read before their rows."""
