"""The files of a checkpoint that a user names, read without its weights."""
