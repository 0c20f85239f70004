"""Linear and generalised linear models over sites, from sums."""
