"""Finding documents: exact search among vectors, BM25, and both fused. It knows no model."""
