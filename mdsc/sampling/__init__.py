"""Filling hidden counts and generating cells with a trained model."""
