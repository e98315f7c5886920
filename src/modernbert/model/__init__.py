"""The encoder: configuration, layers, heads, initialisation and checkpoints in the published form."""
