"""One hospital's machine: what comes in, lies sealed, is looked at, and is on record."""
