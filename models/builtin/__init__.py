"""The small dynamics model that ships: its weights, and the script that trained them."""
