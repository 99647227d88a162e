"""The service: OpenAI's API; each worker has one engine."""
