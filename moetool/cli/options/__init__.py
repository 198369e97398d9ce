"""Options of the commands, as annotated types, and the values they take."""
