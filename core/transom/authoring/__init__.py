"""What helps somebody to publish a plugin: packages to begin with."""
