"""Status from what was observed and planned: pure, and right at every moment for who waits."""
