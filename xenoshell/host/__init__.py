"""What runs on a host: helper, blob store, supervisor. Standard library only, Python >= 3.9."""
