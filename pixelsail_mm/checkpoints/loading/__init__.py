"""Loading of stored weights into a model, with a report of what did not fit."""
