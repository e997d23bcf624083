"""A real training job that meets real trouble, and the list of what it meets."""
