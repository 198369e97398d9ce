"""Parse arguments, make one library call, and render its result."""
