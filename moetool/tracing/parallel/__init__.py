"""One model shared by several processes under transformers' own plans."""
