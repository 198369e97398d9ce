"""Commands about models: their parts, their memory, and the ones that are known."""
