"""Listeners, middleware and the portal."""
