"""Learning from tables: sites' rows, what the sites agree on, encoding, scores, saved models."""
