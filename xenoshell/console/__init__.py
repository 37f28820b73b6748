"""A guest's console on the user's own terminal: what may pass, and the way in and out."""
