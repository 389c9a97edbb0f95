"""The model zoo: size, cost and results of each config's model."""
