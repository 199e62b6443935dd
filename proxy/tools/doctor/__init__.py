"""What keeps this machine from running the service well, each finding with its fix."""
