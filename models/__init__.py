"""Dynamics models, world models and their loading by name. Nothing here knows Ray or the lake."""
