"""Statistics of tables that stay at their sites: computed there, protected there, merged here."""
