"""Put together, run and watched: composition root, command line, hub, demonstration."""
