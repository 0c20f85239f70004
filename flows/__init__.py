"""Job types, one a file: what happens in a job, round by round, as Prefect flows."""
