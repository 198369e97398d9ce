"""Commands that draw figures: one file each."""
