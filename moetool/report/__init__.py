"""From results to words, tables and files. Computes nothing."""
