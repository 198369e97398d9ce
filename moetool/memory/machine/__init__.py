"""Ask this machine about its GPU."""
