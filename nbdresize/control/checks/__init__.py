"""What `nbdresize check` looks at, one concern a module; `control.check` puts them together."""
