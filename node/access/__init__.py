"""Who may come: people, devices, sessions, treatment relationships."""
