"""Files that appear complete or not at all, under a name that one run holds."""
