"""Profiles shipped with the package, one JSON file per known model."""
