"""What flows are made of: dispatch to the sites, rounds, snapshots, reports (Prefect tasks)."""
