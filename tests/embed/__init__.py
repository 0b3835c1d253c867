"""The embedding side of the service: providers, the local model, the embedding server, problems."""
