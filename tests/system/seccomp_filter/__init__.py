"""Builds the filter of a seccomp profile as runc and crun do, and asks it about system calls.

`libraries` finds every libseccomp at hand, `runtimes` translates a profile into calls of it,
`bpf` interprets the exported program, `reference` evaluates the profile's rules without it, and
`compare` reports the system calls for which the two differ. `generator` draws profiles and
`search` runs all of that over many of them.
"""
