"""The hosts: inventory, ssh configuration, connections, facts."""
