"""Where results are written: files that appear whole or not at all, under a name that one run holds."""
