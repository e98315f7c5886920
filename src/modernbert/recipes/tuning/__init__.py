"""What fine-tuning and the training of retrievers share: settings, the session, its journal."""
