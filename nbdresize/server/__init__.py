"""The native front: NBD spoken by this package itself, with the RESIZE command. A thread per connection."""
