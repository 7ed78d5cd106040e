"""Ray and signals: what a long command needs around it, on this machine or on a cluster."""
