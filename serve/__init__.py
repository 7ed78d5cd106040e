"""Live labels and verified predictions over HTTP: FastAPI on Ray Serve, with the models of the batch path."""
