"""Load on `worldlake serve`, and on the same model behind other servers."""
