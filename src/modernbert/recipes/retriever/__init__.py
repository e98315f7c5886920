"""Training of retrievers: a checkpoint and pairs of texts become a model whose vectors find one another."""
