"""What prefect.yaml deploys."""
