"""What every other package uses: checks, randomness, files written whole, classes by name."""
