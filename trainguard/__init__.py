"""Guards long training jobs from Prefect: detect, diagnose, decide, recover, verify."""
