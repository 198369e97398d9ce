"""Later calls of blocks about which an earlier call has proven something."""
