"""Co-activation: experts that are chosen together, in a layer and from one layer to the next."""
