"""Endpoints. To add one, write one file and enter it in `serve.app`: docs/extending.md has the recipe."""
