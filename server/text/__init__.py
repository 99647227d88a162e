"""Tokens and text: tokenizers, decoding piece by piece, stop strings, chat templates, log-probabilities, grammars."""
