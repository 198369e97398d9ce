"""Forward passes on torch's meta device, with the values that follow from no weight."""
