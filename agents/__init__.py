"""What keeps running, at the server and at the sites, and what a site runs for a job."""
