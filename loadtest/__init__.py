"""Load over HTTP against an OpenAI-compatible completions endpoint. Imports nothing of the server."""
