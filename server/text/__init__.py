"""Tokens and text: encoding, decoding piece by piece, stop strings, chat templates, log-probabilities."""
