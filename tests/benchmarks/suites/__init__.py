"""What is measured: each suite gives tables."""
