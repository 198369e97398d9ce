"""Steps of training on the meta device: forward, backward and optimizer, and their memory."""
