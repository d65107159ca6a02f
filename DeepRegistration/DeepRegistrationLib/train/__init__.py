"""Training: one loop for every method, pairs drawn lazily, synthetic pairs with known truth, validation."""
