"""Forward passes on torch's meta device, with the values that don't depend on weights."""
