"""Models of tables against pooled ones, and how long they take."""
