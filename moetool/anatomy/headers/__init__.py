"""Parameters counted in the headers of a checkpoint's files, without torch."""
