"""Scores of a registration: definitions of the Learn2Reg challenge, in physical space."""
