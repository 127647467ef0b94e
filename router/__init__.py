"""The public face: OpenAI's Images routes, dispatch to nodes, the admin API. Installs and starts without torch."""
