"""Formats of serving and training engines: SGLang, vLLM, Megatron-LM, TensorRT-LLM."""
