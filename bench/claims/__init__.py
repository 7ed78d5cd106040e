"""The claims of Qiu et al. (arXiv 2506.06006) on the sample world, with several seeds and intervals."""
