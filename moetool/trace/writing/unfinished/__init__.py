"""The folder of an unfinished trace: its parts, and going on from them."""
