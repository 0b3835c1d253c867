"""TLS at every end: what we serve, what we ask, and what we refuse to believe."""
