"""TensorRT and TensorRT-RTX on NVIDIA GPUs: one implementation, the library is a parameter."""
