"""What is common to frameworks."""
