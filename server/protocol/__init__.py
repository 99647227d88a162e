"""OpenAI's request and response shapes, with the griffin extension. Nothing here knows the rest of the server."""
