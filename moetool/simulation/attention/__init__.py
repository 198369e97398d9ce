"""Attention kernels that only GPUs have, as they run without data."""
