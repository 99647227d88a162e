"""Load over HTTP against any OpenAI-compatible server. Imports nothing of this one."""
