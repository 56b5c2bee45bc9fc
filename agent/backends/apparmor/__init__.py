"""The AppArmor backend, which compiles, loads and verifies AppArmor profiles."""
