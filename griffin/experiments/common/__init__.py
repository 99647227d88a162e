"""What experiments share: the model under study, results, pictures, texts."""
