"""From a valid request to what the client reads: what the engine is told, pieces of text, objects, streams, reports."""
