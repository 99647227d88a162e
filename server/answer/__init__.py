"""From a valid request to its answer: choices for the engine, pieces of text, objects, streams, reports."""
