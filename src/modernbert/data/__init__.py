"""Text to packed batches: tokenizer, token shards, masking, packing and the loader."""
