"""Builds the filter of a seccomp profile as runc and crun do, and evaluates the filter.

`libraries` finds every available libseccomp, `runtimes` translates a profile into calls of the
library, and `bpf` interprets the exported program. `reference` evaluates the rules of the profile
without the library, and `model` uses the model of the agent. `compare` reports system calls for
which the filter differs from the reference or the model. `generator` generates profiles, and
`search` compares many of them.
"""
