"""The AppArmor backend compiles with apparmor_parser, loads through securityfs, and verifies by
content.
"""
