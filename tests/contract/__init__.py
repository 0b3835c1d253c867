"""What operator and service share, and the API server that holds users to it."""
