"""Training together: strategies, what travels, and who may see it."""
