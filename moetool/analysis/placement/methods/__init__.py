"""Ways to place the experts of a layer, and the sums over decisions that they are fitted on."""
