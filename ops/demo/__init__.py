"""The demonstration: a region of real processes on loopback, and one study's whole life played through it."""
