"""The fault catalogue: one YAML file a family."""
