"""What each method has in memory, and whether it fits."""
