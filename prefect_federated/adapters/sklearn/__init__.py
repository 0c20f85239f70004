"""Models of scikit-learn: saved without pickle, and trained at the sites. Extra `sklearn`."""
