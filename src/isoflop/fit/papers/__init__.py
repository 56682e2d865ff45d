"""Published laws and constants, each with its source."""
