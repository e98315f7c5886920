"""What a model is worth: how fast it is, beside others."""
