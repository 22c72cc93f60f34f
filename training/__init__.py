"""Makes the model: data, losses, one loop, recipes."""
