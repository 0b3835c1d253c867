"""What `observe` found: plain frozen values that `plan` and `conditions` decide from."""
