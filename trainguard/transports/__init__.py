"""Ways to reach a machine: SSH, HTTP, Kubernetes, processes."""
