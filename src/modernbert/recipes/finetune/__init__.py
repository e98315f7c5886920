"""Fine-tuning: a checkpoint and a file of examples become a model, with a report that one can trust."""
