"""From what the user typed to the files of a checkpoint; never its weights."""
