"""Using a trained model: text in, answers out."""
