"""AppArmor: compile with apparmor_parser, load through securityfs, verify by content."""
