"""Words and tables about the specialization of experts."""
