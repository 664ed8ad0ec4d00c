"""The HTTP server: the interface of OpenAI's completions on the decode engine."""
