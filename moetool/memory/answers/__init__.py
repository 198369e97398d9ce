"""Plain answers about memory, as reports show them."""
