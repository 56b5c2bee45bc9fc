# Lets a container do everything but write to files.
#include <tunables/global>

profile k8s-apparmor-example-deny-write flags=(attach_disconnected) {
  #include <abstractions/base>

  file,

  # An explicit deny wins over every allow, the ones of abstractions too.
  deny /** w,
}
