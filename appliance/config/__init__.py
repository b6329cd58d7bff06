"""Settings: frozen classes, and how TOML files become them."""
