"""The way to and from a hub of models: names, uploads, downloads, and what a failure means to a user."""
