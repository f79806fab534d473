"""The models that are compared: all with the same weights, each called the way its users would call it."""
