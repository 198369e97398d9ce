"""Steps of training: the parts of a model that are frozen, and the memory of a step."""
