"""Root cause from log streams and scheduler facts."""
