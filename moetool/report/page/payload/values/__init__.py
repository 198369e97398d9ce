"""Single values as the page carries them."""
