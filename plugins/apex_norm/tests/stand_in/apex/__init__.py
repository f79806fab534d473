"""Stands in for NVIDIA Apex in tests: the functions that the plugin calls, with plain torch instead of kernels."""
