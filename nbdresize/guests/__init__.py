"""Running guests: told of new sizes, each in its own way."""
