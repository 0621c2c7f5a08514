"""Bundles: built candidates and a small runner, for a machine without compiler and network."""
