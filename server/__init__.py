"""The service: OpenAI's API over one engine per worker."""
