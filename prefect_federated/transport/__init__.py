"""What carries messages between a job's controller and its sites: the hub and its drivers."""
