"""The tensors that a checkpoint's files list, read from their headers alone."""
