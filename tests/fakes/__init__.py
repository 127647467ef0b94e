"""Stand-ins at the wire: real HTTP, no device."""
