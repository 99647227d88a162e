"""Request and response types of OpenAI's and Anthropic's APIs, with the griffin extension. Imports no other part."""
