"""Ballast beside its peers: the same data, the same steps, the same machine, in turns."""
