"""What is wrong with an installation: every plugin is imported in a process of its own, and suffered nowhere."""
