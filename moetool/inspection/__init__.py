"""One model, inspected: everything that its configuration and its files say of it."""
