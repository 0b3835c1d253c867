"""`polaris load`: files become documents, documents become lines, lines go to the service."""
