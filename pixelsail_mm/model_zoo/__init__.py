"""The model zoo: what each config's model costs, what it reached, what was published."""
