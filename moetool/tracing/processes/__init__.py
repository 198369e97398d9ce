"""The processes that trace together, as torchrun or accelerate started them."""
