"""What runs, in which order. One file per flow; each runs alone, too."""
