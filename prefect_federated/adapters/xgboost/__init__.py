"""XGBoost over sites: trees that are put together, and its own distributed training."""
