"""A model of ggml's graphs and of its graph allocator, which decide llama.cpp's compute buffers."""
