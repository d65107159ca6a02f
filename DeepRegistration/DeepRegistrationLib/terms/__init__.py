"""Costs of an alignment: similarities, regularisers, landmarks, overlap, consistency."""
