"""The real parts that `polaris up` brings along, and what keeps them running."""
