"""The command line: arguments in, one library call, one renderer out."""
