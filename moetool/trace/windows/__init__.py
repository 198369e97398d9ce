"""Windows of whole prompts, for analyses that need the decisions of a token together."""
