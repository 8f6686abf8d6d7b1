"""The tamper-evident log of deeds."""
