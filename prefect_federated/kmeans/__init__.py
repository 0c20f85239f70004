"""k-means over sites: seeding, Lloyd's rounds, the fitted clusters."""
