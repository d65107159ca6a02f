"""Nameless algorithms shared by methods."""
