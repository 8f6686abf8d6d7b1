"""Between hospitals: members, exchange, leases, witnesses and reports."""
