"""Tensor operations without state: sampling, fields, filters, features."""
