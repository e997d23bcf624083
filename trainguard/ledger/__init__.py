"""The durable record of jobs, incidents and actions."""
