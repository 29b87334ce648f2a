"""What answers while users wait: HTTP, one decision, its record, the champion it is made with."""
