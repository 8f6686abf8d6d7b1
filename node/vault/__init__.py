"""Sealed objects, keys and study packs. Only `node.gateway` may import the reading side."""
