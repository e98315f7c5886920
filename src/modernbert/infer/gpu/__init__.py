"""The fused encoder for GPUs: re-arranged weights, passes between products, CUDA graphs."""
