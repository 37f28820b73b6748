"""The frames and values that client, helper and supervisor speak. Standard library only, Python >= 3.9."""
