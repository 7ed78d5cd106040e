"""The explorer: pages on which a person sees what is in the lake. Their data come from the endpoints of the API."""
