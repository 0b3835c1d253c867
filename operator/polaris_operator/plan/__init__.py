"""What has to be done: pure, from a spec, what was observed, and the time."""
