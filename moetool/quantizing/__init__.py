"""Models loaded with quantized weights, their routed experts included."""

import logging

# bitsandbytes warns of an optional kernel that isn't installed whenever it is imported, and of each
# multiplication in float16.
for _name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_name).setLevel(logging.ERROR)
