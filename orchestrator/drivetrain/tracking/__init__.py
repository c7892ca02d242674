"""Logging runs to MLflow without ever making training wait for it."""
