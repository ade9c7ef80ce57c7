"""What ``deploy/`` holds, started for real where that can be done, else held against its schema and our settings."""
