"""Finding documents: exact search among vectors, dense or sparse, BM25, and both fused. It knows no model."""
