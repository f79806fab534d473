"""A plugin whose implementations are each wrong in one way; its card declares them as if they were right."""
